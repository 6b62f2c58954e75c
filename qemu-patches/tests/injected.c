/* SPDX-License-Identifier: GPL-2.0 */
/*
 * An interrupt is injected into a guest under SVM, which then computes for a while.
 *
 * It has to come once (EVENTINJ, AMD APM volume 2, section 15.20). For QEMU with -icount shift=0,
 * where the vCPU leaves its loop at each timer: here the PIT's, whose interrupt stays masked.
 */
#include "test.h"

#define VECTOR 0x30

uint32_t count;

__attribute__((naked)) static void handler(void)
{
	asm volatile("incl count; iretq");
}

static void guest(void)
{
	for (unsigned int n = 0; n < 3000000; n++)
		asm volatile("");
	asm volatile("vmmcall");
}

int main(void)
{
	struct {
		uint16_t limit;
		uint64_t base;
	} __attribute__((packed)) gdt, idt;
	uint32_t entry = (uintptr_t)handler;
	uint16_t *gate;

	asm volatile("sgdt %0" : "=m"(gdt));
	asm volatile("sidt %0" : "=m"(idt));
	gate = (uint16_t *)(uintptr_t)(idt.base + VECTOR * 16);
	gate[0] = entry;
	gate[1] = 8;
	gate[2] = 0x8e00;	/* present, an interrupt gate */
	gate[3] = entry >> 16;
	vmcb.gdtr = (struct segment){0, 0, gdt.limit, gdt.base};
	vmcb.idtr = (struct segment){0, 0, idt.limit, idt.base};
	out8(0x21, 0xff);	/* PIC: all masked */
	out8(0x43, 0x34);	/* PIT: channel 0, a rate generator */
	out8(0x40, 0xa9);	/* 1193: 1 kHz */
	out8(0x40, 0x04);
	vmcb.event_inj = 0x80000000 | VECTOR;	/* valid, type 0: INTR */
	run_guest(guest, 0, 0, 0);
	end(count == 1);
}
