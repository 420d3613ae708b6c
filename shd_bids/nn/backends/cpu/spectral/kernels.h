// All kernels of one instruction set, which the including file names:
//
//   SHD_NAME     namespace of the kernels
//   SHD_WIDTH    floats of a vector
//   SHD_ROWS     rows of a register tile
//   SHD_TARGET   attribute of functions that use the instructions

#include <algorithm>
#include <memory>
#include <vector>

#include "job.h"
#include "level.h"

#if defined(__clang__)
#pragma clang fp contract(fast)
#endif

namespace shd {
namespace {
namespace SHD_NAME {
#include "vector.h"
#include "product.h"
#include "basis.h"
#include "blocks.h"
#include "shells.h"
#include "weights.h"
#include "cells.h"
#include "planes.h"
#include "forward.h"
#include "backward.h"
#include "rows.h"
} // namespace SHD_NAME
} // namespace

#define SHD_LEVEL(name)                                                                                                        \
  {name::kWidth,  name::kRows,         name::analyse, name::forward,          name::backward,                                  \
   name::moments, name::gradient_sums, name::rectify, name::rectify_gradient, name::box_sum}
} // namespace shd
