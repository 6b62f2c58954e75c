/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A guest under SVM is entered over and over with a virtual interrupt pending (V_IRQ, AMD APM
 * volume 2, section 15.21.4), until the timer of the local APIC has run out; then the host takes
 * its interrupt, which has to be there. Where it can be lost it is, once in 300 to 2000 times.
 */
#include "test.h"

#define VECTOR 0x30
#define ROUNDS 20000
#define APIC 0xfee00000ul
#define APIC_EOI 0xb0
#define APIC_SPURIOUS 0xf0
#define APIC_IRR 0x210		/* vectors 0x20 to 0x3f */
#define APIC_TIMER 0x320
#define APIC_COUNT 0x380
#define APIC_DIVIDE 0x3e0

volatile uint32_t count;

static volatile uint32_t *apic(uint32_t offset)
{
	return (volatile uint32_t *)(APIC + offset);
}

__attribute__((naked)) static void handler(void)
{
	asm volatile("incl count; iretq");
}

static void guest(void)
{
	asm volatile("1: vmmcall; jmp 1b");
}

/* 2 MiB around the local APIC, where it lies */
static void map_apic(void)
{
	static uint64_t directory[512] __attribute__((aligned(4096)));
	uint64_t *pml4, *pointers;

	asm volatile("mov %%cr3, %0" : "=r"(pml4));
	pointers = (uint64_t *)(pml4[0] & ~0xffful);
	directory[APIC >> 21 & 511] = APIC | 0x93;	/* present, writable, uncached, large */
	pointers[APIC >> 30] = (uintptr_t)directory | 3;
}

static void set_gate(void)
{
	struct {
		uint16_t limit;
		uint64_t base;
	} __attribute__((packed)) idt;
	uint16_t *gate;

	asm volatile("sidt %0" : "=m"(idt));
	gate = (uint16_t *)(uintptr_t)(idt.base + VECTOR * 16);
	gate[0] = (uintptr_t)handler;
	gate[1] = 8;
	gate[2] = 0x8e00;	/* present, an interrupt gate */
	gate[3] = (uintptr_t)handler >> 16;
}

int main(void)
{
	map_apic();
	set_gate();
	out8(0x21, 0xff);	/* PIC: all masked */
	out8(0xa1, 0xff);
	*apic(APIC_SPURIOUS) = 0x1ff;
	*apic(APIC_DIVIDE) = 0xb;	/* by 1 */
	*apic(APIC_TIMER) = VECTOR;	/* one-shot */
	for (uint32_t round = 0; round < ROUNDS; round++) {
		*apic(APIC_COUNT) = 2000 + round * 7919 % 8000;
		do {
			for (int n = 0; n < 16; n++) {
				*(uint32_t *)((char *)&vmcb + 0x60) = 1 << 8 | 1 << 20;
				run_guest(guest, 0, 0, 0);
			}
		} while (!(*apic(APIC_IRR) & 1 << (VECTOR & 31)));
		asm volatile("stgi");
		for (int n = 0; n < 100000 && count == round; n++)
			asm volatile("sti; nop; nop; cli");
		if (count == round)
			end(0);
		*apic(APIC_EOI) = 0;
	}
	end(1);
}
