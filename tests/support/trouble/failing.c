// SPDX-License-Identifier: GPL-2.0
/*
 * Lets one call that a driver makes fail, without a change of the driver: a
 * kprobe on each function below looks at who calls, counts the calls of the
 * module that is watched, and has the call that is named return at once, with
 * what the function returns when it fails.
 *
 * /proc/failing, written (one command at a time):
 *   watch MODULE                count the calls of MODULE; none fails
 *   fail FUNCTION SITE N [ERR [TIMES]]
 *                               count anew, and let the N-th call from SITE
 *                               fail, with -ERR where the function has an
 *                               errno to return; and those that follow it, so
 *                               that TIMES fail
 * and read: "failed 0" or "failed 1", then a line of "CALLS FUNCTION SITE KEY"
 * for each place that has called. A SITE is the caller's symbol+offset, with the
 * offset in hexadecimal; KEY the key in xenstore of the first call, or "-".
 */
#include <linux/err.h>
#include <linux/kernel.h>
#include <linux/kallsyms.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <xen/xenbus.h>

#define MOST_SITES 1024
#define NAME_SIZE 96
#define KEY_SIZE 48

/*
 * What stands in for a function that does more than return when it fails: it
 * reports the error itself, ends what it was given, or has a default.
 */
static int stand_in_errno;

static unsigned int default_of_read(const char *dir, const char *node, unsigned int value)
{
	return value;
}

static int transaction_not_ended(struct xenbus_transaction transaction, int abort)
{
	xenbus_transaction_end(transaction, 1);
	return stand_in_errno;
}

static int reported(struct xenbus_device *dev)
{
	xenbus_dev_fatal(dev, stand_in_errno, "a call that fails");
	return stand_in_errno;
}

/* xenbus reports it and closes the device, and returns 0 nevertheless. */
static int state_not_switched(struct xenbus_device *dev, enum xenbus_state state)
{
	xenbus_dev_fatal(dev, stand_in_errno, "a state that is not written");
	return 0;
}

/* The registers have the value already. */
static noinline notrace void at_once(void)
{
}

struct call {
	const char *name;
	long value;
	void *stand_in;
	/* Where pt_regs has a string that says what the call is about, or 0. */
	unsigned int key;
	struct kprobe probe;
	bool probed;
};

#define CALL(function, returned) { .name = #function, .value = (returned) }
#define CALL_BY(function, error, by) { .name = #function, .value = (error), .stand_in = (by) }

#define DIR_AND_KEY offsetof(struct pt_regs, si)
#define XBT_DIR_KEY offsetof(struct pt_regs, dx)
#define CALL_FOR(function, returned, where) \
	{ .name = #function, .value = (returned), .key = (where) }

/* A kernel has some of them; the names of allocations change most. */
static struct call calls[] = {
	CALL(kmalloc_trace, 0),
	CALL(kmem_cache_alloc_trace, 0),
	CALL(__kmalloc_cache_noprof, 0),
	CALL(__kmalloc, 0),
	CALL(__kmalloc_noprof, 0),
	CALL(__kmalloc_large_noprof, 0),
	CALL(kmalloc_large, 0),
	CALL(kmem_cache_alloc, 0),
	CALL(kmem_cache_alloc_noprof, 0),
	CALL(kvmalloc_node, 0),
	CALL(__kvmalloc_node_noprof, 0),
	CALL(alloc_pages, 0),
	CALL(__alloc_pages, 0),
	CALL(alloc_pages_noprof, 0),
	CALL(__alloc_pages_noprof, 0),
	CALL(kasprintf, 0),
	CALL(mempool_create, 0),
	CALL(mempool_create_node, 0),
	CALL(mempool_create_node_noprof, 0),
	CALL(kmem_cache_create, 0),
	CALL(__kmem_cache_create_args, 0),
	CALL_FOR(xenbus_scanf, -EIO, XBT_DIR_KEY),
	CALL(xenbus_gather, -EIO),
	CALL_FOR(xenbus_printf, -EIO, XBT_DIR_KEY),
	CALL_FOR(xenbus_rm, -EIO, XBT_DIR_KEY),
	CALL_FOR(xenbus_read, -EIO, XBT_DIR_KEY),
	CALL(xenbus_directory, -EIO),
	{ .name = "xenbus_read_unsigned", .stand_in = default_of_read, .key = DIR_AND_KEY },
	CALL(xenbus_transaction_start, -EIO),
	CALL_BY(xenbus_transaction_end, -EIO, transaction_not_ended),
	CALL_BY(xenbus_switch_state, -EIO, state_not_switched),
	CALL_BY(xenbus_watch_pathfmt, -ENOMEM, reported),
	CALL_BY(xenbus_alloc_evtchn, -ENOSPC, reported),
	CALL(xenbus_setup_ring, -ENOMEM),
	CALL(xenbus_map_ring_valloc, -ENOMEM),
	CALL(bind_evtchn_to_irqhandler_lateeoi, -ENOMEM),
	CALL(bind_interdomain_evtchn_to_irqhandler_lateeoi, -ENOMEM),
	CALL(gnttab_alloc_grant_references, -ENOSPC),
	CALL(gnttab_page_cache_get, -ENOMEM),
	CALL(kthread_create_on_node, -ENOMEM),
	CALL(blkdev_get_by_dev, -ENXIO),
	CALL(bdev_open_by_dev, -ENXIO),
	CALL(bdev_file_open_by_dev, -ENXIO),
	CALL(sync_blockdev, -EIO),
	CALL(device_create_file, -ENOMEM),
	CALL(sysfs_create_group, -ENOMEM),
	CALL(blk_mq_alloc_tag_set, -ENOMEM),
	CALL(__blk_mq_alloc_disk, -ENOMEM),
	CALL(device_add_disk, -ENOMEM),
	CALL(debugfs_create_dir, -ENOMEM),
	CALL(__register_blkdev, -EBUSY),
	CALL(__xenbus_register_frontend, -ENOMEM),
	CALL(__xenbus_register_backend, -ENOMEM),
};

struct site {
	const struct call *call;
	unsigned long from;
	unsigned int count;
	/* Empty for a caller that is not watched. */
	char name[NAME_SIZE];
	char key[KEY_SIZE];
};

/* Its lock holds for all of this. */
static DEFINE_RAW_SPINLOCK(lock);
static struct site *sites;
static unsigned int nr_sites;
static bool full;
static char watched[MODULE_NAME_LEN + 2];
static struct {
	char function[NAME_SIZE];
	char site[NAME_SIZE];
	unsigned int nth;
	long error;
	unsigned int times;
	bool failed;
} wanted;

/* "function+0x12" of a caller in the watched module, else "". */
static void name_caller(char *name, unsigned long from)
{
	static char text[KSYM_SYMBOL_LEN];

	name[0] = '\0';
	/* A call that ends its function returns to the next one's start. */
	sprint_symbol(text, from - 1);
	if (!watched[0] || !strstr(text, watched))
		return;
	strscpy(name, text, NAME_SIZE);
	name[strcspn(name, "/")] = '\0';
}

static struct site *site_of(const struct call *call, unsigned long from, struct pt_regs *regs)
{
	struct site *site;
	unsigned int i;

	for (i = 0; i < nr_sites; i++)
		if (sites[i].from == from && sites[i].call == call)
			return &sites[i];
	if (nr_sites == MOST_SITES) {
		full = true;
		return NULL;
	}
	site = &sites[nr_sites++];
	site->call = call;
	site->from = from;
	site->count = 0;
	name_caller(site->name, from);
	strscpy(site->key, "-", KEY_SIZE);
	if (call->key && site->name[0])
		strscpy(site->key, *(const char **)((char *)regs + call->key), KEY_SIZE);
	return site;
}

static bool is_to_fail(const struct call *call, unsigned long from, struct pt_regs *regs)
{
	struct site *site = site_of(call, from, regs);

	if (!site || !site->name[0])
		return false;
	site->count++;
	if (!wanted.times || site->count < wanted.nth || strcmp(call->name, wanted.function) ||
	    strcmp(site->name, wanted.site))
		return false;
	wanted.times--;
	wanted.failed = true;
	return true;
}

static int called(struct kprobe *probe, struct pt_regs *regs)
{
	const struct call *call = container_of(probe, struct call, probe);
	unsigned long from = *(unsigned long *)regs->sp;
	unsigned long flags;
	long value;
	bool fails;

	if (from < MODULES_VADDR || from >= MODULES_END)
		return 0;

	raw_spin_lock_irqsave(&lock, flags);
	fails = is_to_fail(call, from, regs);
	value = wanted.error && call->value ? wanted.error : call->value;
	if (fails)
		stand_in_errno = value;
	raw_spin_unlock_irqrestore(&lock, flags);

	if (!fails)
		return 0;
	regs->ax = value;
	regs->ip = (unsigned long)(call->stand_in ?: at_once);
	return 1;
}
NOKPROBE_SYMBOL(called);

static void forget_sites(void)
{
	nr_sites = 0;
	full = false;
	memset(&wanted, 0, sizeof(wanted));
}

static int command(const char *text)
{
	char name[MODULE_NAME_LEN], function[NAME_SIZE], site[NAME_SIZE];
	unsigned int nth, error = 0, times = 1;
	int err = 0;

	raw_spin_lock_irq(&lock);
	if (sscanf(text, "watch %55s", name) == 1) {
		snprintf(watched, sizeof(watched), "[%s]", name);
		forget_sites();
	} else if (sscanf(text, "fail %95s %95s %u %u %u", function, site, &nth, &error, &times) >=
		   3) {
		forget_sites();
		strscpy(wanted.function, function, NAME_SIZE);
		strscpy(wanted.site, site, NAME_SIZE);
		wanted.nth = nth;
		wanted.times = times;
		wanted.error = -(long)error;
	} else {
		err = -EINVAL;
	}
	raw_spin_unlock_irq(&lock);

	return err;
}

static ssize_t failing_write(struct file *file, const char __user *buffer, size_t size,
			     loff_t *position)
{
	char text[320];
	int err;

	if (size >= sizeof(text))
		return -EINVAL;
	if (copy_from_user(text, buffer, size))
		return -EFAULT;
	text[size] = '\0';
	err = command(text);

	return err ?: size;
}

static int failing_show(struct seq_file *file, void *unused)
{
	struct site *shown;
	unsigned int i, num;
	bool failed, lost;

	shown = kvcalloc(MOST_SITES, sizeof(*shown), GFP_KERNEL);
	if (!shown)
		return -ENOMEM;
	raw_spin_lock_irq(&lock);
	num = nr_sites;
	memcpy(shown, sites, num * sizeof(*shown));
	failed = wanted.failed;
	lost = full;
	raw_spin_unlock_irq(&lock);

	seq_printf(file, "failed %d\n", failed);
	if (lost)
		seq_puts(file, "more places call than there is room for\n");
	for (i = 0; i < num; i++)
		if (shown[i].name[0])
			seq_printf(file, "%u %s %s %s\n", shown[i].count, shown[i].call->name,
				   shown[i].name, shown[i].key);
	kvfree(shown);

	return 0;
}

static int failing_open(struct inode *inode, struct file *file)
{
	return single_open(file, failing_show, NULL);
}

static const struct proc_ops failing_ops = {
	.proc_open = failing_open,
	.proc_read = seq_read,
	.proc_write = failing_write,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
};

static void remove_probes(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(calls); i++)
		if (calls[i].probed)
			unregister_kprobe(&calls[i].probe);
}

static int __init failing_init(void)
{
	unsigned int i;
	int err;

	sites = kvcalloc(MOST_SITES, sizeof(*sites), GFP_KERNEL);
	if (!sites)
		return -ENOMEM;

	for (i = 0; i < ARRAY_SIZE(calls); i++) {
		calls[i].probe.symbol_name = calls[i].name;
		calls[i].probe.pre_handler = called;
		err = register_kprobe(&calls[i].probe);
		calls[i].probed = !err;
		/* Another kernel has it. */
		if (err && err != -ENOENT)
			pr_info("failing: %s can't be probed: %d\n", calls[i].name, err);
	}

	if (!proc_create("failing", 0600, NULL, &failing_ops)) {
		remove_probes();
		kvfree(sites);
		return -ENOMEM;
	}

	return 0;
}

static void __exit failing_exit(void)
{
	remove_proc_entry("failing", NULL);
	remove_probes();
	kvfree(sites);
}

module_init(failing_init);
module_exit(failing_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Lets one call of a driver fail");
