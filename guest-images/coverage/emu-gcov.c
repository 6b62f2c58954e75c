// SPDX-License-Identifier: GPL-2.0
/*
 * How often each arc of the block drivers was taken, in kernels without CONFIG_GCOV_KERNEL.
 *
 * A driver that was built with counted.h has one struct gcov_info for each of its source files
 * (a "unit"). This module, loaded before the driver, finds them when the driver is loaded, and
 * keeps their counters when it is unloaded, so that several loads of a driver add up.
 * /proc/emu-gcov shows what was counted so far:
 *
 *     emu-gcov 1 0123456789abcdef               the version of this text; a number of this load
 *     unit 0x4232322a 0x12 0x34 xen-blkfront.gcda
 *                                               gcc's version, stamp and checksum; its file
 *     fn 0x1 0x2 0x3 0 17 0*4 9                 ident, both checksums, counters ("0*4": four)
 */
#include <linux/ctype.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/proc_fs.h>
#include <linux/random.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/string.h>

#define VERSION 1
#define PREFIX "emu_gcov."

/* The layout of gcc's data, by its version: gcc/coverage.c, libgcc/libgcov.h. */
#if __GNUC__ >= 15
#define KINDS 10
#elif __GNUC__ == 14
#define KINDS 9
#else
#define KINDS 8
#endif

struct gcov_info;

struct gcov_ctr_info {
	unsigned int num;
	s64 *values;
};

struct gcov_fn_info {
	const struct gcov_info *key;
	unsigned int ident;
	unsigned int lineno_checksum;
	unsigned int cfg_checksum;
	struct gcov_ctr_info ctrs[]; /* one: that of the arcs */
};

struct gcov_info {
	unsigned int version;
	struct gcov_info *next;
	unsigned int stamp;
#if __GNUC__ >= 12
	unsigned int checksum;
#endif
	const char *filename;
	void (*merge[KINDS])(s64 *counters, unsigned int count);
	unsigned int n_functions;
	const struct gcov_fn_info *const *functions;
};

/* What is known of one function: what it is, and its counts of the loads that have ended. */
struct function {
	unsigned int ident, lineno_checksum, cfg_checksum;
	unsigned int count, first;
};

struct unit {
	struct list_head all;
	unsigned int version, stamp, checksum;
	char *file;
	struct gcov_info *live; /* while its module is loaded */
	struct module *module;
	unsigned int functions;
	struct function *function;
	u64 *ended;
};

static LIST_HEAD(units);
static DEFINE_MUTEX(lock);
static u64 number;

static unsigned int checksum_of(const struct gcov_info *info)
{
#if __GNUC__ >= 12
	return info->checksum;
#else
	return 0;
#endif
}

/* gcc leaves a null pointer, or another file's key, for a function that was not kept. */
static const struct gcov_fn_info *function_of(const struct gcov_info *info, unsigned int n)
{
	const struct gcov_fn_info *fn = info->functions[n];

	return fn && fn->key == info ? fn : NULL;
}

static void forget(struct unit *unit)
{
	kfree(unit->file);
	kvfree(unit->function);
	kvfree(unit->ended);
	kfree(unit);
}

static struct unit *remember(const struct gcov_info *info)
{
	struct unit *unit = kzalloc(sizeof(*unit), GFP_KERNEL);
	unsigned int n, total = 0;

	if (!unit)
		return NULL;
	unit->version = info->version;
	unit->stamp = info->stamp;
	unit->checksum = checksum_of(info);
	unit->file = kstrdup(kbasename(info->filename), GFP_KERNEL);
	unit->functions = info->n_functions;
	unit->function = kvcalloc(info->n_functions, sizeof(*unit->function), GFP_KERNEL);
	if (!unit->file || !unit->function)
		goto failed;
	for (n = 0; n < info->n_functions; n++) {
		const struct gcov_fn_info *fn = function_of(info, n);
		struct function *one = &unit->function[n];

		if (!fn)
			continue;
		one->ident = fn->ident;
		one->lineno_checksum = fn->lineno_checksum;
		one->cfg_checksum = fn->cfg_checksum;
		one->count = fn->ctrs[0].num;
		one->first = total;
		total += one->count;
	}
	unit->ended = kvcalloc(total + 1, sizeof(*unit->ended), GFP_KERNEL);
	if (!unit->ended)
		goto failed;
	list_add_tail(&unit->all, &units);
	return unit;

failed:
	forget(unit);
	return NULL;
}

static void began(struct module *module, struct gcov_info *info)
{
	struct unit *unit, *found = NULL;

	list_for_each_entry(unit, &units, all) if (unit->stamp == info->stamp &&
						   unit->checksum == checksum_of(info) &&
						   !strcmp(unit->file, kbasename(info->filename)))
		found = unit;
	if (!found)
		found = remember(info);
	if (!found) {
		pr_err("emu-gcov: no memory for the counters of %s\n", module->name);
		return;
	}
	found->live = info;
	found->module = module;
}

static u64 counted(const struct unit *unit, unsigned int fn, unsigned int counter)
{
	u64 sum = unit->ended[unit->function[fn].first + counter];

	if (unit->live)
		sum += READ_ONCE(function_of(unit->live, fn)->ctrs[0].values[counter]);
	return sum;
}

static void ended(struct unit *unit)
{
	unsigned int fn, n;

	for (fn = 0; fn < unit->functions; fn++)
		for (n = 0; n < unit->function[fn].count; n++)
			unit->ended[unit->function[fn].first + n] = counted(unit, fn, n);
	unit->live = NULL;
	unit->module = NULL;
}

static void find_units(struct module *module)
{
	const struct mod_kallsyms *symbols;
	unsigned int n;

	/* While a module is coming this has all its symbols, later only some. */
	symbols = rcu_dereference_protected(module->kallsyms, 1);
	for (n = 0; n < symbols->num_symtab; n++) {
		const char *name = symbols->strtab + symbols->symtab[n].st_name;

		if (str_has_prefix(name, PREFIX))
			began(module, (struct gcov_info *)symbols->symtab[n].st_value);
	}
}

static int changed(struct notifier_block *block, unsigned long state, void *data)
{
	struct module *module = data;
	struct unit *unit;

	mutex_lock(&lock);
	if (state == MODULE_STATE_COMING)
		find_units(module);
	if (state == MODULE_STATE_GOING) /* its exit function has run, its memory is there still */
		list_for_each_entry(unit, &units, all) if (unit->module == module) ended(unit);
	mutex_unlock(&lock);
	return NOTIFY_DONE;
}

static struct notifier_block block = { .notifier_call = changed };

static void show_function(struct seq_file *file, const struct unit *unit, unsigned int fn)
{
	const struct function *one = &unit->function[fn];
	unsigned int n, same;

	seq_printf(file, "fn %#x %#x %#x", one->ident, one->lineno_checksum, one->cfg_checksum);
	for (n = 0; n < one->count; n += same) {
		u64 count = counted(unit, fn, n);

		for (same = 1; n + same < one->count && !count; same++)
			if (counted(unit, fn, n + same))
				break;
		seq_printf(file, same > 1 ? " %llu*%u" : " %llu", count, same);
	}
	seq_putc(file, '\n');
}

static int show(struct seq_file *file, void *unused)
{
	struct unit *unit;
	unsigned int fn;

	seq_printf(file, "emu-gcov %d %016llx\n", VERSION, number);
	mutex_lock(&lock);
	list_for_each_entry(unit, &units, all)
	{
		seq_printf(file, "unit %#x %#x %#x %s\n", unit->version, unit->stamp,
			   unit->checksum, unit->file);
		for (fn = 0; fn < unit->functions; fn++)
			if (unit->function[fn].count)
				show_function(file, unit, fn);
	}
	mutex_unlock(&lock);
	seq_puts(file, "end\n");
	return 0;
}

static int __init start(void)
{
	int error;

	number = get_random_u64();
	if (!proc_create_single("emu-gcov", 0400, NULL, show))
		return -ENOMEM;
	error = register_module_notifier(&block);
	if (error)
		remove_proc_entry("emu-gcov", NULL);
	return error;
}

static void __exit stop(void)
{
	struct unit *unit, *next;

	unregister_module_notifier(&block);
	remove_proc_entry("emu-gcov", NULL);
	list_for_each_entry_safe(unit, next, &units, all) forget(unit);
}

module_init(start);
module_exit(stop);
MODULE_DESCRIPTION("Counters of gcc's coverage, kept over an unload");
MODULE_LICENSE("GPL");
