"""The counters of ``programs/counters.h``, in its order."""

TICKS = "ticks"
IDLE = "idle"
OWN = "own"
OTHER = "other"
SAMPLES = "samples"
LOST_SAMPLES = "lost_samples"
LOST_VALUE = "lost_value"
LOST_STACKS = "lost_stacks"
NEW_STACKS = "new_stacks"
NEW_COUNTS = "new_counts"
LOST_CHILDREN = "lost_children"
LOST_THREADS = "lost_threads"
LOST_WAKERS = "lost_wakers"
NEW_LINKS = "new_links"
NEW_CHAINS = "new_chains"
FILTERED = "filtered_waits"
NEGATIVE = "negative_waits"
MISSED = "missed_ends"
RECALLED = "recalled"
MISTAKEN = "mistaken"
COPIES = "late_stacks"
LOST_COPIES = "dropped_copies"

COUNTERS = (
    TICKS,
    IDLE,
    OWN,
    OTHER,
    SAMPLES,
    LOST_SAMPLES,
    LOST_VALUE,
    LOST_STACKS,
    NEW_STACKS,
    NEW_COUNTS,
    LOST_CHILDREN,
    LOST_THREADS,
    LOST_WAKERS,
    NEW_LINKS,
    NEW_CHAINS,
    FILTERED,
    NEGATIVE,
    MISSED,
    RECALLED,
    MISTAKEN,
    COPIES,
    LOST_COPIES,
)
