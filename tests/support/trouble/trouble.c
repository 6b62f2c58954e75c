// SPDX-License-Identifier: GPL-2.0
/* Has one bug, run when it is loaded, for the debug kernels to detect. */
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

static char *what = "";
module_param(what, charp, 0);

static DEFINE_MUTEX(first);
static DEFINE_MUTEX(second);
static DEFINE_SPINLOCK(lock);

static void lock_both(struct mutex *one, struct mutex *other)
{
	mutex_lock(one);
	mutex_lock(other);
	mutex_unlock(other);
	mutex_unlock(one);
}

static void sleep_under_a_spinlock(void)
{
	spin_lock(&lock);
	might_sleep();
	spin_unlock(&lock);
}

/* Hide the object from the compiler, which would warn or optimize. */
static char *slab(size_t size)
{
	char *object = kmalloc(size, GFP_KERNEL);

	OPTIMIZER_HIDE_VAR(object);
	return object;
}

static void write_after_free(void)
{
	char *object = slab(200);
	unsigned int again;

	kfree(object);
	object[100] = 1;
	/* SLUB checks an object when it is allocated again. */
	for (again = 0; again < 64; again++)
		(void)slab(200);
}

static void write_beyond(void)
{
	char *object = slab(128);

	object[130] = 1;
	kfree(object);
}

static void write_to_a_free_page(void)
{
	struct page *page = alloc_page(GFP_KERNEL);
	char *address = page_address(page);

	OPTIMIZER_HIDE_VAR(address);
	__free_page(page);
	address[8] = 1;
	address[9] = 1;
	/* The page freed last on this CPU is allocated first. */
	page = alloc_page(GFP_KERNEL);
	__free_page(page);
}

static void forget(void)
{
	unsigned int object;

	for (object = 0; object < 8; object++)
		slab(300)[0] = 1;
}

static int __init trouble_init(void)
{
	if (!strcmp(what, "locks")) {
		lock_both(&first, &second);
		lock_both(&second, &first);
	} else if (!strcmp(what, "sleep")) {
		sleep_under_a_spinlock();
	} else if (!strcmp(what, "free")) {
		write_after_free();
	} else if (!strcmp(what, "beyond")) {
		write_beyond();
	} else if (!strcmp(what, "page")) {
		write_to_a_free_page();
	} else if (!strcmp(what, "leak")) {
		forget();
	} else {
		return -EINVAL;
	}
	return 0;
}

static void __exit trouble_exit(void)
{
}

module_init(trouble_init);
module_exit(trouble_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("One bug, for a debug kernel to detect");
