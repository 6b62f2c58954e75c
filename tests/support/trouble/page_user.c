// SPDX-License-Identifier: GPL-2.0
/*
 * Another user of a page that a back end has mapped, as a socket's buffer is that has not been
 * acknowledged: takes the first page of an unmap when that begins. Whoever asked for the unmap
 * waits until `let_go` is written. `taken` is 1 while the page is held.
 */
#include <linux/kprobes.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <xen/grant_table.h>

static struct page *page;
static bool taken;
module_param(taken, bool, 0444);

static int unmap_begins(struct kprobe *probe, struct pt_regs *regs)
{
	struct gntab_unmap_queue_data *item = (void *)regs_get_kernel_argument(regs, 0);

	if (item->count && !cmpxchg(&page, NULL, item->pages[0])) {
		get_page(item->pages[0]);
		WRITE_ONCE(taken, true);
	}
	return 0;
}

static struct kprobe probe = {
	.symbol_name = "gnttab_unmap_refs_async",
	.pre_handler = unmap_begins,
};

/* The pointer stays: only one page is ever taken. */
static int let_go_set(const char *value, const struct kernel_param *parameter)
{
	if (taken) {
		WRITE_ONCE(taken, false);
		put_page(page);
	}
	return 0;
}

static const struct kernel_param_ops let_go_ops = {
	.set = let_go_set,
};
module_param_cb(let_go, &let_go_ops, NULL, 0200);

static int __init page_user_init(void)
{
	return register_kprobe(&probe);
}

static void __exit page_user_exit(void)
{
	unregister_kprobe(&probe);
	let_go_set(NULL, NULL);
}

module_init(page_user_init);
module_exit(page_user_exit);
MODULE_LICENSE("GPL");
