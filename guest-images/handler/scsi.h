/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Commands beside I/O that tcmu-runner would answer as those of another LUN. */
#ifndef EMU_LUN_SCSI_H
#define EMU_LUN_SCSI_H

#include "lun.h"

struct tcmulib_cmd;

/* Answer one. TCMU_STS_NOT_HANDLED: tcmu-runner's own answer is right. */
int scsi_answer(struct lun *lun, struct tcmulib_cmd *command);

#endif
