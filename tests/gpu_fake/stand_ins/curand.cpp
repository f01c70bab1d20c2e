// Stands in for cuRAND, which is loaded and not used.
#include "device.h"

SUCCEEDS(curandCreateGenerator)
