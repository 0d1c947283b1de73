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
)
