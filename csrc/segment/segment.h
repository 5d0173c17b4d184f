// One kernel for segment and segment_and_count: labels at image resolution by similarity, softmax,
// bilinear upsampling and argmax, row by row. The upsampled maps are never stored.
#pragma once

#include "common/cpu.h"
#include "common/feature_map.h"

namespace infoseg {

struct SegmentArguments {
  FeatureMap features;
  const void* G = nullptr;   // [B, K, C] in the accumulation type
  const void* g0 = nullptr;  // [B, K], or null for no offset
  int64_t K = 0;
  double temperature = 1;
  bool logits = false;  // upsample the similarities instead of the probabilities
  int64_t rows = 0, columns = 0;
  int threads = 1;

  uint8_t* labels = nullptr;  // [B, rows, columns], or null when only counts are wanted

  // Joint counts of label and target, without positions whose target is ignored; null: not wanted.
  const uint8_t* target = nullptr;  // [B, rows, columns]
  int64_t num_classes = 0;
  int ignore_index = -1;      // -1: nothing is ignored
  int64_t* counts = nullptr;  // [K, num_classes], added to
};

// Returns the flat index of the first target value that is neither below num_classes nor ignored,
// or -1.
INFOSEG_KERNEL(int64_t, segment, SegmentArguments)

}  // namespace infoseg
