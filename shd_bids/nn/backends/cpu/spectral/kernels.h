// All kernels of one instruction set, which the including file names:
//
//   SHD_NAME     namespace of the kernels
//   SHD_WIDTH    floats of a vector
//   SHD_ROWS     rows of a register tile
//   SHD_TARGET   attribute of functions that use the instructions
//   SHD_PRODUCTS file of the products of the forward pass, if they are not in float32: then there is no other

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
#include "blocks.h"
#ifdef SHD_PRODUCTS
#include SHD_PRODUCTS
#else
#include "product.h"
#include "single.h"
#endif
#include "basis.h"
#include "shells.h"
#include "weights.h"
#include "cells.h"
#include "planes.h"
#include "forward.h"
#ifndef SHD_PRODUCTS
#include "backward.h"
#include "rows.h"
#endif
} // namespace SHD_NAME
} // namespace

#define SHD_LEVEL(name)                                                                                                        \
  {name::kWidth,   name::kRows,   kSingle,             name::analyse, name::forward,                                           \
   name::backward, name::moments, name::gradient_sums, name::rectify, name::rectify_gradient, name::box_sum}
#define SHD_FORWARD_LEVEL(name, factors)                                                                                       \
  {name::kWidth, name::kRows, factors, name::analyse, name::forward, {}, {}, {}, {}, {}, {}}
} // namespace shd
