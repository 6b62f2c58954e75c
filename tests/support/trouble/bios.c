// SPDX-License-Identifier: GPL-2.0
/*
 * Requests that no process waits for: what a process waits for keeps a guest from being saved.
 *
 * what=discard, what=secure: `sectors` sectors from `sector` on are discarded; logs how that ended.
 * what=writes: a thread on the last CPU writes a block, again and again, until the module is
 * removed; `done` counts.
 */
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/version.h>

static char *disk = "/dev/xvda";
module_param(disk, charp, 0);
static char *what = "discard";
module_param(what, charp, 0);
static ulong sector;
module_param(sector, ulong, 0);
static uint sectors = 8;
module_param(sectors, uint, 0);

static ulong done;
module_param(done, ulong, 0444);

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 9, 0)
static struct file *file;

static struct block_device *open_disk(void)
{
	file = bdev_file_open_by_path(disk, BLK_OPEN_READ | BLK_OPEN_WRITE, NULL, NULL);
	return IS_ERR(file) ? ERR_CAST(file) : file_bdev(file);
}

static void close_disk(struct block_device *device)
{
	bdev_fput(file);
}
#else
static struct block_device *open_disk(void)
{
	return blkdev_get_by_path(disk, FMODE_READ | FMODE_WRITE, NULL);
}

static void close_disk(struct block_device *device)
{
	blkdev_put(device, FMODE_READ | FMODE_WRITE);
}
#endif

static struct block_device *device;
static struct task_struct *writer;
static struct page *page;
static DECLARE_COMPLETION(ended);

static void end(struct bio *bio)
{
	if (!writer)
		pr_info("bios: %s ended with %d\n", what, blk_status_to_errno(bio->bi_status));
	bio_put(bio);
	complete(&ended);
}

static int write_blocks(void *unused)
{
	struct bio *bio;

	while (!kthread_should_stop()) {
		bio = bio_alloc(device, 1, REQ_OP_WRITE, GFP_KERNEL);
		bio->bi_iter.bi_sector = sector;
		bio->bi_end_io = end;
		__bio_add_page(bio, page, PAGE_SIZE, 0);
		submit_bio(bio);
		wait_for_completion(&ended);
		done++;
		usleep_range(500, 1000);
	}
	return 0;
}

static int __init bios_init(void)
{
	struct bio *bio;

	page = alloc_page(GFP_KERNEL | __GFP_ZERO);
	if (!page)
		return -ENOMEM;
	device = open_disk();
	if (IS_ERR(device))
		return PTR_ERR(device);
	if (!strcmp(what, "writes")) {
		writer = kthread_create(write_blocks, NULL, "bios");
		if (IS_ERR(writer))
			return PTR_ERR(writer);
		kthread_bind(writer, num_online_cpus() - 1);
		wake_up_process(writer);
		return 0;
	}
	bio = bio_alloc(device, 0, strcmp(what, "secure") ? REQ_OP_DISCARD : REQ_OP_SECURE_ERASE,
			GFP_KERNEL);
	bio->bi_iter.bi_sector = sector;
	bio->bi_iter.bi_size = sectors << SECTOR_SHIFT;
	bio->bi_end_io = end;
	submit_bio(bio);
	return 0;
}
module_init(bios_init);

static void __exit bios_exit(void)
{
	if (writer)
		kthread_stop(writer);
	else
		wait_for_completion(&ended);
	close_disk(device);
	__free_page(page);
}
module_exit(bios_exit);

MODULE_DESCRIPTION("Requests that no process waits for");
MODULE_LICENSE("GPL");
