// Labels at image resolution: similarity, softmax, bilinear upsampling and argmax in one, row by row. No upsampled
// volume is formed.
#pragma once

#include "feature_map.h"

namespace infoseg {

struct SegmentationArguments {
  DType dtype = DType::f32;
  FeatureMap features;
  const void* G = nullptr;   // [B, K, C] in the accumulation type
  const void* g0 = nullptr;  // [B, K] or null
  int64_t K = 0;
  double temperature = 1;
  bool logits = false;  // upsample the similarities instead of the probabilities
  int64_t rows = 0, columns = 0;
  int threads = 1;

  uint8_t* labels = nullptr;  // [B, rows, columns] or null

  // Counts of label and target, where the target is not to be ignored; null where not wanted.
  const uint8_t* target = nullptr;  // [B, rows, columns]
  int64_t num_classes = 0;
  int ignore_index = -1;      // -1: nothing is ignored
  int64_t* counts = nullptr;  // [K, num_classes], added to
};

// The flat index of a target value that is neither below num_classes nor ignored, or -1.
int64_t segment(const SegmentationArguments& a);

// One instruction set's entry point.
struct SegmentationKernels {
  int64_t (*segment)(const SegmentationArguments&);
};

}  // namespace infoseg
