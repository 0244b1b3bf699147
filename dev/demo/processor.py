"""How to start the host on a processor, so that it computes instead of waiting."""

# The host's own switches: text encoders in the precision that they are computed in, instead of cast from 16 bits at every use; the layout
# that a processor's convolutions are fastest in; torch's attention.
SWITCHES = ("--cpu", "--fp32-text-enc", "--force-channels-last", "--use-pytorch-cross-attention")
# glibc keeps the memory that a step frees, instead of giving it back and taking it anew. Other systems do not read this.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(2 << 30), "MALLOC_TOP_PAD_": str(256 << 20)}
# Threads look for work for some 20 microseconds before they sleep: two thirds of the time of sleeping at once while the machine is quiet,
# a quarter more when it is busy.
ENVIRONMENT = {"GOMP_SPINCOUNT": "1000", **KEEP_MEMORY}
