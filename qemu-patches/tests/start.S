/* SPDX-License-Identifier: GPL-2.0 */
/*
 * From the boot loader (multiboot) to main() in 64-bit mode, in ring 0.
 *
 * The first 2 MiB belong to the supervisor, the next 2 MiB to ring 3 as well; both
 * are mapped as they lie. GDT: 08 code, 10 data, 18 data for ring 3, 20 code for
 * ring 3, 28 the TSS. Vector 14 is the page fault handler, vector 80h may be called
 * from ring 3: both end the test, through page_fault() and from_user().
 */
	.section .multiboot, "a"
	.long	0x1badb002, 0, -0x1badb002

	.code32
	.text
	.globl	_start
_start:
	movl	$stack_top, %esp
	movl	$(pdpt + 7), pml4
	movl	$(pd + 7), pdpt
	movl	$0x83, pd		/* present, writable, large */
	movl	$0x200087, pd + 8	/* the same, and for ring 3 */
	movl	$pml4, %eax
	movl	%eax, %cr3
	movl	$0x620, %eax		/* CR4: PAE, OSFXSR, OSXMMEXCPT */
	movl	%eax, %cr4
	movl	$0xc0000080, %ecx	/* EFER: LME, SVME, NXE */
	rdmsr
	orl	$0x1900, %eax
	wrmsr
	movl	$0x80010011, %eax	/* CR0: PG, WP, ET, PE */
	movl	%eax, %cr0
	lgdt	gdtr
	ljmp	$8, $long_mode

	.code64
long_mode:
	movl	$0x10, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	$stack_top, %esp
	movl	$tss, %eax		/* its address, in a descriptor's pieces */
	movw	%ax, gdt + 0x2a
	shrl	$16, %eax
	movb	%al, gdt + 0x2c
	movb	%ah, gdt + 0x2f
	movq	$stack_top, tss + 4	/* RSP0 */
	movl	$0x28, %eax
	ltr	%ax
	movl	$14, %edi
	movl	$fault_entry, %esi
	call	set_gate
	movl	$0x80, %edi
	movl	$user_entry, %esi
	call	set_gate
	lidt	idtr
	call	main

fault_entry:
	movq	(%rsp), %rdi		/* the error code */
	call	page_fault
user_entry:
	call	from_user

set_gate:				/* an interrupt gate for ring 3 */
	shll	$4, %edi
	movw	%si, idt(%rdi)
	movw	$8, idt + 2(%rdi)
	movw	$0xee00, idt + 4(%rdi)
	shrl	$16, %esi
	movw	%si, idt + 6(%rdi)
	ret

	.data
	.balign	16
gdt:	.quad	0, 0x00af9b000000ffff, 0x00cf93000000ffff
	.quad	0x00cff3000000ffff, 0x00affb000000ffff
	.quad	0x0000890000000067, 0
gdtr:	.word	. - gdt - 1
	.quad	gdt
idtr:	.word	0x81 * 16 - 1
	.quad	idt

	.bss
	.balign	4096
pml4:	.skip	4096
pdpt:	.skip	4096
pd:	.skip	4096
idt:	.skip	4096
tss:	.skip	4096
	.skip	4096
stack_top:
	.section .note.GNU-stack, "", @progbits
