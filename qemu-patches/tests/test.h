/* SPDX-License-Identifier: GPL-2.0 */
/* What the reproducers share: a line on COM1, the end, and one guest under SVM. */
#ifndef TEST_H
#define TEST_H

#include <stdint.h>

void page_fault(uint64_t error);
void from_user(void);
int main(void);

static inline void out8(uint16_t port, uint8_t value)
{
	asm volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void write_msr(uint32_t msr, uint64_t value)
{
	asm volatile("wrmsr" : : "c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
}

static inline void say(const char *text)
{
	while (*text)
		out8(0x3f8, *text++);
}

/* "right" or "wrong", and QEMU's exit status 1 or 3 if it has -device isa-debug-exit,iobase=0xf4 */
static inline _Noreturn void end(int right)
{
	say(right ? "right\n" : "wrong\n");
	out8(0xf4, !right);
	for (;;)
		asm volatile("cli; hlt");
}

/* Whoever expects none has no faults. */
#ifndef EXPECTS_FAULTS
void page_fault(uint64_t error)
{
	(void)error;
	end(0);
}

void from_user(void)
{
	end(0);
}
#endif

/* AMD APM volume 2, appendix B "VMCB Layout" */
struct segment {
	uint16_t selector, attributes;
	uint32_t limit;
	uint64_t base;
};

struct vmcb {
	uint32_t intercept_other[3], intercept[2];	/* [0]: vector 3, [1]: vector 4 */
	uint8_t pad0[0x58 - 0x14];
	uint32_t asid;
	uint8_t pad1[0x70 - 0x5c];
	uint64_t exit_code;
	uint8_t pad2[0xa8 - 0x78];
	uint64_t event_inj;
	uint8_t pad3[0x400 - 0xb0];
	struct segment es, cs, ss, ds, fs, gs, gdtr, ldtr, idtr, tr;
	uint8_t pad4[0x4d0 - 0x4a0];
	uint64_t efer;
	uint8_t pad5[0x548 - 0x4d8];
	uint64_t cr4, cr3, cr0, dr7, dr6, rflags, rip;
	uint8_t pad6[0x5d8 - 0x580];
	uint64_t rsp;
	uint8_t pad7[0x5f8 - 0x5e0];
	uint64_t rax;
	uint8_t pad8[0x1000 - 0x600];
} __attribute__((packed, aligned(4096)));

#define RDTSC_INTERCEPT		(1u << 14)	/* of vector 3 */
#define VMRUN_INTERCEPT		(1u << 0)	/* of vector 4 */
#define VMMCALL_INTERCEPT	(1u << 1)
#define RDTSCP_INTERCEPT	(1u << 7)
#define XSETBV_INTERCEPT	(1u << 13)

static struct vmcb vmcb, host_save;

/* Run `guest` in ring 0, on page tables of ours, until it exits; the exit code */
static inline uint64_t run_guest(void (*guest)(void), uint32_t vector3, uint32_t vector4,
				 uint64_t cr4)
{
	static uint8_t stack[4096] __attribute__((aligned(16)));

	vmcb.intercept[0] = vector3;
	vmcb.intercept[1] = vector4 | VMRUN_INTERCEPT | VMMCALL_INTERCEPT;
	vmcb.asid = 1;
	vmcb.cs = (struct segment){8, 0xa9b, 0xffffffff, 0};
	vmcb.ds = vmcb.es = vmcb.ss = (struct segment){0x10, 0xc93, 0xffffffff, 0};
	asm volatile("mov %%cr0, %0" : "=r"(vmcb.cr0));
	asm volatile("mov %%cr3, %0" : "=r"(vmcb.cr3));
	asm volatile("mov %%cr4, %0" : "=r"(vmcb.cr4));
	vmcb.cr4 |= cr4;
	vmcb.efer = 0x1d00;	/* NXE, SVME, LMA, LME */
	vmcb.dr6 = 0xffff0ff0;
	vmcb.dr7 = 0x400;
	vmcb.rflags = 2;
	vmcb.rip = (uintptr_t)guest;
	vmcb.rsp = (uintptr_t)stack + sizeof(stack) - 8;
	write_msr(0xc0010117, (uintptr_t)&host_save);	/* VM_HSAVE_PA */
	asm volatile("vmrun %%rax" : : "a"(&vmcb)
		     : "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
		       "r14", "r15", "memory");
	return vmcb.exit_code;
}

#endif
