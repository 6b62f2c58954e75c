/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The tcmu-runner plugin: `dev_config=ledger//path/to/file`, or with `?physical=BYTES` at its end
 * for physical sectors that are larger than the logical ones. nr_threads is 0, and every request is
 * completed by tcmur_cmd_complete(), so that a waiting one occupies no thread.
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "libtcmu.h"
#include "tcmu-runner.h"
#include "tcmur_device.h"

#include "control.h"
#include "lun.h"

#define FUA 0x08 /* SBC-3: byte 1 of WRITE (10), (12), (16) */
/* Of READ CAPACITY (16), as tcmu-runner has them: LBPME and LBPRZ, unmapped blocks read as zeros. */
#define SERVICE_ACTION_IN_16 0x9e
#define READ_CAPACITY_16 0x10
#define PROVISIONED 0xc0
#define PHYSICAL "?physical="

/* To be freed; NULL without a path. */
static char *path_of(const char *config)
{
	const char *slash = strchr(config, '/');
	const char *end = strstr(config, PHYSICAL);

	if (!slash || !slash[1])
		return NULL;
	return end ? strndup(slash + 1, end - slash - 1) : strdup(slash + 1);
}

/* The exponent in READ CAPACITY (16): logical blocks in a physical one, as a power of two. */
static unsigned physical_exponent(const char *config, uint32_t sector)
{
	const char *physical = strstr(config, PHYSICAL);
	unsigned long bytes = physical ? strtoul(physical + strlen(PHYSICAL), NULL, 10) : 0;
	unsigned exponent = 0;

	while (exponent < 15 && (uint64_t)sector << exponent < bytes)
		exponent++;
	return exponent;
}

static bool ledger_check_config(const char *config, char **reason)
{
	char *path = path_of(config);
	bool there = path && !access(path, R_OK | W_OK);

	if (!there && asprintf(reason, "no file %s to serve", path ? path : "name") < 0)
		*reason = NULL;
	free(path);
	return there;
}

static int ledger_open(struct tcmu_device *dev, bool reopen)
{
	const char *config = tcmu_dev_get_cfgstring(dev);
	char *path = path_of(config);
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
	lun->physical_exponent = physical_exponent(config, lun->sector);
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

/* tcmu-runner's own READ CAPACITY (16) knows no physical sectors. */
static int ledger_handle_cmd(struct tcmu_device *dev, struct tcmur_cmd *cmd)
{
	struct lun *lun = tcmur_dev_get_private(dev);
	struct tcmulib_cmd *lib = cmd->lib_cmd;
	uint8_t answer[32] = { 0 };
	uint64_t last;
	uint32_t sector;

	if (!lun || !lun->physical_exponent || lib->cdb[0] != SERVICE_ACTION_IN_16 ||
	    (lib->cdb[1] & 0x1f) != READ_CAPACITY_16)
		return TCMU_STS_NOT_HANDLED;
	pthread_mutex_lock(&lun->lock);
	last = htobe64(lun->size - 1);
	pthread_mutex_unlock(&lun->lock);
	sector = htobe32(lun->sector);
	memcpy(answer, &last, sizeof(last));
	memcpy(answer + 8, &sector, sizeof(sector));
	answer[13] = (uint8_t)lun->physical_exponent;
	answer[14] = PROVISIONED;
	tcmu_memcpy_into_iovec(lib->iovec, lib->iov_cnt, answer, sizeof(answer));
	return TCMU_STS_OK;
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
