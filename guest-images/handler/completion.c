/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Answer a request that was served. */
#include "libtcmu.h"
#include "tcmu-runner.h"

#include "lun.h"

/*
 * tcmu-runner's own state of an UNMAP (or a WRITE SAME that unmaps), of which a request here is a
 * part: the same in 1.5.2 to 1.6.2.
 */
struct unmap_state {
	pthread_mutex_t lock;
	unsigned int refcount;
	int status;
};

/*
 * unmap_put() of tcmu-runner takes over the status of a part only if another has failed before
 * ("state->status != TCMU_STS_OK && ret"): alone, it would be answered as done.
 */
static void unmap_failed(struct tcmur_cmd *part, int status)
{
	struct tcmur_cmd *whole = part->lib_cmd->hm_private;
	struct unmap_state *state = whole->cmd_state;

	pthread_mutex_lock(&state->lock);
	state->status = status;
	pthread_mutex_unlock(&state->lock);
}

void lun_complete(struct lun *lun, struct request *r, int status)
{
	if (r->operation == OP_UNMAP && status != TCMU_STS_OK)
		unmap_failed(r->command, status);
	tcmur_cmd_complete(lun->device, r->command, status);
}
