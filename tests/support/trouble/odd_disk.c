// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/odd: 1 MiB that reads as zeroes, on a medium that can be removed. It says that it has a
 * cache, and knows no flush; it erases securely. `erased` and `discarded` are the last extents, as
 * "SECTOR+SECTORS".
 */
#include <linux/blkdev.h>
#include <linux/module.h>
#include <linux/version.h>

#define SECTORS 2048

static struct gendisk *disk;
static int major;
static char erased[48], discarded[48];
module_param_string(erased, erased, sizeof(erased), 0444);
module_param_string(discarded, discarded, sizeof(discarded), 0444);

static void odd_submit(struct bio *bio)
{
	char *extent = NULL;

	if (bio->bi_opf & REQ_PREFLUSH) {
		bio->bi_status = BLK_STS_NOTSUPP;
		bio_endio(bio);
		return;
	}
	if (bio_op(bio) == REQ_OP_READ)
		zero_fill_bio(bio);
	else if (bio_op(bio) == REQ_OP_SECURE_ERASE)
		extent = erased;
	else if (bio_op(bio) == REQ_OP_DISCARD)
		extent = discarded;
	if (extent)
		snprintf(extent, sizeof(erased), "%llu+%u",
			 (unsigned long long)bio->bi_iter.bi_sector, bio_sectors(bio));
	bio_endio(bio);
}

static const struct block_device_operations odd_operations = {
	.owner = THIS_MODULE,
	.submit_bio = odd_submit,
};

static struct gendisk *odd_allocate(void)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
	struct queue_limits limits = {
		.features = BLK_FEAT_WRITE_CACHE,
		.max_hw_discard_sectors = SECTORS,
		.max_secure_erase_sectors = SECTORS,
		.discard_granularity = SECTOR_SIZE,
	};

	return blk_alloc_disk(&limits, NUMA_NO_NODE);
#else
	struct gendisk *made = blk_alloc_disk(NUMA_NO_NODE);

	if (!made)
		return ERR_PTR(-ENOMEM);
	blk_queue_write_cache(made->queue, true, false);
	blk_queue_max_discard_sectors(made->queue, SECTORS);
	blk_queue_max_secure_erase_sectors(made->queue, SECTORS);
	made->queue->limits.discard_granularity = SECTOR_SIZE;
	return made;
#endif
}

static int __init odd_init(void)
{
	int err;

	major = register_blkdev(0, "odd");
	if (major < 0)
		return major;
	disk = odd_allocate();
	if (IS_ERR(disk)) {
		err = PTR_ERR(disk);
		goto unregister;
	}
	disk->major = major;
	disk->minors = 1;
	disk->fops = &odd_operations;
	disk->flags |= GENHD_FL_REMOVABLE;
	strscpy(disk->disk_name, "odd", sizeof(disk->disk_name));
	set_capacity(disk, SECTORS);
	err = add_disk(disk);
	if (!err)
		return 0;
	put_disk(disk);
unregister:
	unregister_blkdev(major, "odd");
	return err;
}

static void __exit odd_exit(void)
{
	del_gendisk(disk);
	put_disk(disk);
	unregister_blkdev(major, "odd");
}

module_init(odd_init);
module_exit(odd_exit);
MODULE_LICENSE("GPL");
