/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The tcmu-runner plugin; config.h has its `dev_config`, of which this takes the numbers
 *
 *	physical	bytes of physical sectors that are larger than the logical ones
 *	full		1: nothing can be unmapped
 *	write_protected	1: MODE SENSE says so; it is LIO that refuses writes
 *
 * nr_threads is 0, and every request is completed by tcmur_cmd_complete(), so that a waiting one
 * occupies no thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "libtcmu.h"
#include "tcmu-runner.h"
#include "tcmur_device.h"

#include "config.h"
#include "control.h"
#include "lun.h"
#include "scsi.h"

#define FUA 0x08 /* SBC-3: byte 1 of WRITE (10), (12), (16) */

/* The exponent in READ CAPACITY (16): logical blocks in a physical one, as a power of two. */
static unsigned physical_exponent(unsigned long bytes, uint32_t sector)
{
	unsigned exponent = 0;

	while (exponent < 15 && (uint64_t)sector << exponent < bytes)
		exponent++;
	return exponent;
}

static bool ledger_check_config(const char *config, char **reason)
{
	char *path = config_path(config);
	bool there = path && !access(path, R_OK | W_OK);

	if (!there && asprintf(reason, "no file %s to serve", path ? path : "name") < 0)
		*reason = NULL;
	free(path);
	return there;
}

static int ledger_open(struct tcmu_device *dev, bool reopen)
{
	const char *config = tcmu_dev_get_cfgstring(dev);
	char *path = config_path(config);
	struct lun *lun;

	(void)reopen;
	if (!path) {
		tcmu_err("no file name in %s\n", config);
		return -EINVAL;
	}
	lun = lun_new(dev, path, tcmu_dev_get_block_size(dev), tcmu_dev_get_num_lbas(dev));
	free(path);
	if (!lun)
		return -EIO;
	lun->physical_exponent = physical_exponent(config_number(config, "physical"), lun->sector);
	lun->full = config_number(config, "full");
	lun->write_protected = config_number(config, "write_protected");
	if (lun->full)
		tcmu_dev_set_unmap_enabled(dev, false);
	tcmu_dev_set_write_cache_enabled(dev, true);
	tcmur_dev_set_private(dev, lun);
	control_add(lun);
	return 0;
}

static void ledger_close(struct tcmu_device *dev)
{
	struct lun *lun = tcmur_dev_get_private(dev);

	control_remove(lun);
	lun_close(lun);
}

static int ledger_reconfig(struct tcmu_device *dev, struct tcmulib_cfg_info *cfg)
{
	struct lun *lun = tcmur_dev_get_private(dev);

	if (cfg->type != TCMULIB_CFG_DEV_SIZE)
		return -EOPNOTSUPP;
	if (ftruncate(lun->fd, cfg->data.dev_size))
		return -errno;
	pthread_mutex_lock(&lun->lock);
	lun->size = cfg->data.dev_size / lun->sector;
	pthread_mutex_unlock(&lun->lock);
	return 0;
}

static int ledger_handle_cmd(struct tcmu_device *dev, struct tcmur_cmd *cmd)
{
	struct lun *lun = tcmur_dev_get_private(dev);

	return lun ? scsi_answer(lun, cmd->lib_cmd) : TCMU_STS_NOT_HANDLED;
}

static int submit(struct tcmu_device *dev, struct tcmur_cmd *cmd, enum operation operation,
		  struct iovec *iov, size_t iov_cnt, uint64_t length, uint64_t offset)
{
	struct lun *lun = tcmur_dev_get_private(dev);
	const uint8_t *cdb = cmd->lib_cmd->cdb;
	struct request request = {
		.command = cmd,
		.operation = operation,
		.lba = offset / lun->sector,
		.blocks = (uint32_t)(length / lun->sector),
		.iov = iov,
		.iov_cnt = iov_cnt,
	};

	/* WRITE (6) has a part of the LBA there. */
	if (operation == OP_WRITE && cdb[0] >= 0x20 && cdb[1] & FUA)
		request.flags |= WAS_FUA;
	return lun_submit(lun, &request);
}

static int ledger_read(struct tcmu_device *dev, struct tcmur_cmd *cmd, struct iovec *iov,
		       size_t iov_cnt, size_t length, off_t offset)
{
	return submit(dev, cmd, OP_READ, iov, iov_cnt, length, offset);
}

static int ledger_write(struct tcmu_device *dev, struct tcmur_cmd *cmd, struct iovec *iov,
			size_t iov_cnt, size_t length, off_t offset)
{
	return submit(dev, cmd, OP_WRITE, iov, iov_cnt, length, offset);
}

static int ledger_flush(struct tcmu_device *dev, struct tcmur_cmd *cmd)
{
	return submit(dev, cmd, OP_FLUSH, NULL, 0, 0, 0);
}

static int ledger_unmap(struct tcmu_device *dev, struct tcmur_cmd *cmd, uint64_t offset,
			uint64_t length)
{
	return submit(dev, cmd, OP_UNMAP, NULL, 0, length, offset);
}

/* Before 1.5.3 tcmu-runner itself makes ordinary writes of a WRITE SAME. */
#ifndef TCMU_RUNNER_1_5_2
static int ledger_writesame(struct tcmu_device *dev, struct tcmur_cmd *cmd, uint64_t offset,
			    uint64_t length, struct iovec *iov, size_t iov_cnt)
{
	return submit(dev, cmd, OP_WRITE_SAME, iov, iov_cnt, length, offset);
}
#endif

static struct tcmur_handler ledger = {
	.name = "File with a log of its requests",
	.subtype = "ledger",
	.cfg_desc = "The path of the file to serve.",
	.check_config = ledger_check_config,
	.open = ledger_open,
	.close = ledger_close,
	.reconfig = ledger_reconfig,
	.handle_cmd = ledger_handle_cmd,
	.read = ledger_read,
	.write = ledger_write,
	.flush = ledger_flush,
	.unmap = ledger_unmap,
#ifndef TCMU_RUNNER_1_5_2
	.writesame = ledger_writesame,
#endif
	.nr_threads = 0,
};

/* Looked up by tcmu-runner. */
int handler_init(void);

int __attribute__((visibility("default"))) handler_init(void)
{
	int failed = control_start();

	return failed ? failed : tcmur_register_handler(&ledger);
}
