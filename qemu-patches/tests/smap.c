/* SPDX-License-Identifier: GPL-2.0 */
/*
 * With CR4.SMAP set, ring 3 makes a far call, a far return and an IRET to ring 3.
 *
 * All three use ring 3's own stack, and are user-mode accesses (Intel SDM volume 3,
 * section 4.6): nothing may fault. Made with supervisor rights they do, with an error
 * code that says so (1 or 3: no U/S).
 */
#define EXPECTS_FAULTS
#include "test.h"

void page_fault(uint64_t error)
{
	say(error & 4 ? "page fault " : "page fault of the supervisor ");
	end(0);
}

void from_user(void)
{
	end(1);
}

/* In the pages of ring 3. */
asm(".section .user, \"awx\"\n"
    "user_code:\n"
    "	lcall	*(target)\n"		/* pushes CS and EIP, 4 bytes each */
    "	movq	%rsp, %rax\n"
    "	pushq	$0x1b\n"		/* SS */
    "	pushq	%rax\n"
    "	pushq	$2\n"			/* RFLAGS */
    "	pushq	$0x23\n"		/* CS */
    "	pushq	$1f\n"
    "	iretq\n"
    "1:	int	$0x80\n"
    "callee:\n"
    "	lretl\n"
    "target:\n"
    "	.long	callee\n"
    "	.word	0x23\n"
    "	.balign	16\n"
    "	.skip	1024\n"
    "user_stack:\n"
    ".previous\n");

int main(void)
{
	uint64_t cr4;

	asm volatile("mov %%cr4, %0" : "=r"(cr4));
	asm volatile("mov %0, %%cr4" : : "r"(cr4 | 1 << 21));
	asm volatile("pushq $0x1b; pushq $user_stack; pushq $2; pushq $0x23; pushq $user_code; iretq");
	return 0;
}
