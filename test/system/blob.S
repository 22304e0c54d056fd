# blob.S: the linked snippets (snippets.ld) as data of the test program.
	.section .rodata
	.balign 16
	.globl blob, blob_end
blob:
	.incbin BLOB_FILE
blob_end:
	.section .note.GNU-stack, "", @progbits
