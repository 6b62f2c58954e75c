/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * tcmu-runner's own READ CAPACITY (16) knows no physical sectors and has every LUN provisioned
 * thinly; its MODE SENSE knows no write protection (SBC-3, SPC-4).
 */
#include "scsi.h"

#include <endian.h>
#include <string.h>

#include "libtcmu.h"

#define MODE_SENSE_6 0x1a
#define WRITE_SAME_10 0x41
#define UNMAP 0x42
#define MODE_SENSE_10 0x5a
#define WRITE_SAME_16 0x93
#define SERVICE_ACTION_IN_16 0x9e
#define READ_CAPACITY_16 0x10

/* LBPME and LBPRZ: unmapped blocks read as zeros. */
#define PROVISIONED 0xc0

#define UNMAPS 0x08 /* byte 1 of WRITE SAME */

#define PROTECTED 0x80 /* WP, in the header's device-specific parameter */
#define CACHING 0x08
#define ALL_PAGES 0x3f
#define WRITE_CACHE 0x04

static int read_capacity(struct lun *lun, struct tcmulib_cmd *command)
{
	uint32_t sector = htobe32(lun->sector);
	uint8_t answer[32] = { 0 };
	uint64_t last;

	pthread_mutex_lock(&lun->lock);
	last = htobe64(lun->size - 1);
	pthread_mutex_unlock(&lun->lock);
	memcpy(answer, &last, sizeof(last));
	memcpy(answer + 8, &sector, sizeof(sector));
	answer[13] = (uint8_t)lun->physical_exponent;
	answer[14] = lun->full ? 0 : PROVISIONED;
	tcmu_memcpy_into_iovec(command->iovec, command->iov_cnt, answer, sizeof(answer));
	return TCMU_STS_OK;
}

/* The header and the one page that says something: it has a write cache, so that flushes come. */
static int mode_sense(struct tcmulib_cmd *command)
{
	const uint8_t *cdb = command->cdb;
	bool ten = cdb[0] == MODE_SENSE_10;
	uint8_t page = cdb[2] & ALL_PAGES, answer[8 + 20] = { 0 };
	size_t header = ten ? 8 : 4, length = header + 20;

	if ((page != CACHING && page != ALL_PAGES) || (cdb[3] && cdb[3] != 0xff))
		return TCMU_STS_INVALID_CDB;
	answer[ten ? 1 : 0] = (uint8_t)(length - (ten ? 2 : 1));
	answer[ten ? 3 : 2] = PROTECTED;
	answer[header] = CACHING;
	answer[header + 1] = 18;
	answer[header + 2] = WRITE_CACHE;
	tcmu_memcpy_into_iovec(command->iovec, command->iov_cnt, answer, length);
	return TCMU_STS_OK;
}

static bool writes_same(const uint8_t *cdb)
{
	return cdb[0] == WRITE_SAME_10 || cdb[0] == WRITE_SAME_16;
}

int scsi_answer(struct lun *lun, struct tcmulib_cmd *command)
{
	const uint8_t *cdb = command->cdb;

	/*
	 * Of a WRITE SAME that unmaps tcmu-runner 1.5.4 takes the blocks modulo the alignment of
	 * unmaps, and this LUN has none: 0. One thread brings all commands of a LUN.
	 */
	tcmu_dev_set_unmap_gran_align(lun->device, writes_same(cdb) && cdb[1] & UNMAPS);

	switch (cdb[0]) {
	case SERVICE_ACTION_IN_16:
		if ((cdb[1] & 0x1f) == READ_CAPACITY_16)
			return read_capacity(lun, command);
		break;
	case MODE_SENSE_6:
	case MODE_SENSE_10:
		if (lun->write_protected)
			return mode_sense(command);
		break;
	case UNMAP:
		if (lun->full)
			return TCMU_STS_INVALID_CMD;
		break;
	}
	return TCMU_STS_NOT_HANDLED;
}
