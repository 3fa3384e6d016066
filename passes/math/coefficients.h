/* Made by scripts/math_coefficients.py: polynomials (lowest power first) and constants in parts. */
#ifndef QN_PASSES_MATH_COEFFICIENTS_H
#define QN_PASSES_MATH_COEFFICIENTS_H

#include <stdint.h>

/* (e^r - 1 - r) / r^2 on [-0.34675, 0.34675], error 2^-28.22 */
static const double exp_f32[] = { 0x1.fffffc0000000p-2, 0x1.55548c0000000p-3, 0x1.5558580000000p-5,
                                  0x1.123da80000000p-7, 0x1.6ac1880000000p-10 };
/* (e^r - 1 - r) / r^2 on [-0.34675, 0.34675], error 2^-57.71 */
static const double exp_f64[] = { 0x1.000000000000ap-1,  0x1.5555555555503p-3,  0x1.55555555505efp-5,
                                  0x1.1111111124f0ep-7,  0x1.6c16c184bd5aap-10, 0x1.a01a013cc366cp-13,
                                  0x1.a01998714cc03p-16, 0x1.71def50fff872p-19, 0x1.28aef8d29b0bbp-22,
                                  0x1.add6e1e096f9ap-26 };
/* 2^r for a f32 result, in f64 on [-0.5002, 0.5002], error 2^-29.0 */
static const double exp2_f32_wide[] = { 0x1.0000000263390p+0, 0x1.62e430c86cf48p-1, 0x1.ebfbdad9a38b6p-3,
                                        0x1.c6aed405c60e4p-5, 0x1.3b2dbceedc981p-7, 0x1.5f45c570ed79fp-10,
                                        0x1.41d2fdb46afcap-13 };
/* (sinh(x) / x - 1) / z, z = x^2 on [0.0, 1.0], error 2^-27.17 */
static const double sinh_f32[] = { 0x1.5555560000000p-3, 0x1.1111360000000p-7, 0x1.9ffe140000000p-13,
                                   0x1.7a263c0000000p-19 };
/* (sinh(x) / x - 1) / z, z = x^2 on [0.0, 1.0], error 2^-56.54 */
static const double sinh_f64[] = { 0x1.5555555555555p-3,  0x1.1111111111111p-7,  0x1.a01a01a019fbep-13,
                                   0x1.71de3a55742aap-19, 0x1.ae645673e2c2bp-26, 0x1.61246b1cc45e2p-33,
                                   0x1.ae7558d44a912p-41, 0x1.9a7ecaad4dd1bp-49 };
/* (tanh(x) / x - 1) / z, z = x^2 on [0.0, 0.3601], error 2^-28.41 */
static const double tanh_f32[] = { -0x1.55553e0000000p-2, 0x1.1109be0000000p-3, -0x1.b89ab20000000p-5,
                                   0x1.54c34c0000000p-6, -0x1.8284280000000p-8 };
/* (tanh(x) / x - 1) / z, z = x^2 on [0.0, 0.3601], error 2^-57.74 */
static const double tanh_f64[] = { -0x1.5555555555532p-2,  0x1.111111110e351p-3,  -0x1.ba1ba1b78f7f1p-5,
                                   0x1.664f47f24b274p-6,   -0x1.226e22c49f07ep-7, 0x1.d6d0cbb28fadap-9,
                                   -0x1.7d7a0ceed989cp-10, 0x1.33dc4afccfa3cp-11, -0x1.e336499eade65p-13,
                                   0x1.4cbd981de70c7p-14,  -0x1.20588fd860889p-16 };
/* log(2) in parts; n * the first is exact for |n| < 512 */
static const double ln2_f32[] = { 0x1.62e4000000000p-1, 0x1.7f7d1c0000000p-20 };
/* log(2) in parts; n * the first is exact for |n| < 8192 */
static const double ln2_f64[] = { 0x1.62e42fefa4000p-1, -0x1.8432a1b0e2634p-43 };

/* (log(1 + x) - x + x^2/2) / x^3 on [-0.29289, 0.41421], error 2^-28.46 */
static const double log_f32[] = { 0x1.5555480000000p-2,  -0x1.0000060000000p-2, 0x1.99a4b00000000p-3,
                                  -0x1.555c4a0000000p-3, 0x1.2337be0000000p-3,  -0x1.fc22c60000000p-4,
                                  0x1.e6ecbc0000000p-4,  -0x1.de36960000000p-4, 0x1.14589a0000000p-4 };
/* (2 atanh(s) / s - 2) / z, z = s^2 on [0.0, 0.029452], error 2^-58.48 */
static const double log_f64[] = { 0x1.5555555555592p-1, 0x1.999999997feb6p-2, 0x1.24924941ea660p-2,
                                  0x1.c71c520abe2e4p-3, 0x1.74663f436fbf8p-3, 0x1.39a1a43b8cea7p-3,
                                  0x1.2f06b742c0a71p-3 };
/* likewise, for a f32 power in f64 on [0.0, 0.029452], error 2^-43.93 */
static const double log_f32_wide[] = { 0x1.555555561e31fp-1, 0x1.999996a9092b9p-2, 0x1.2494122810521p-2,
                                       0x1.c62afa0271e96p-3, 0x1.91176a4ea1a5ep-3 };
/* (2 atanh(s) / s - 2 - 2z/3) / z^2, z = s^2 on [0.0, 0.029452], error 2^-64.76 */
static const double log_tail_f64[] = { 0x1.9999999999a1ep-2, 0x1.249249247334cp-2, 0x1.c71c720bd004ap-3,
                                       0x1.745cf4323c913p-3, 0x1.3b1d3b7231323p-3, 0x1.0fa42799cca3cp-3,
                                       0x1.0d0a345a8a995p-3 };

/* (sin(x) / x - 1) / z, z = x^2 on [0.0, 0.61747], error 2^-28.17 */
static const double sin_f32[] = { -0x1.5555560000000p-3, 0x1.1111080000000p-7, -0x1.a00f9a0000000p-13,
                                  0x1.6cd75a0000000p-19 };
/* (cos(x) - 1 + z/2) / z^2, z = x^2 on [0.0, 0.61747], error 2^-33.13 */
static const double cos_f32[] = { 0x1.55554a0000000p-5, -0x1.6c0c1a0000000p-10, 0x1.99e1040000000p-16 };
/* (tan(x) / x - 1) / z, z = x^2 on [0.0, 0.61747], error 2^-25.74 */
static const double tan_f32[] = { 0x1.5554de0000000p-2, 0x1.112df00000000p-3, 0x1.b583e80000000p-5,
                                  0x1.907d4e0000000p-6, 0x1.95e8820000000p-9, 0x1.3401060000000p-7 };
/* (sin(x) / x - 1) / z, z = x^2 on [0.0, 0.61747], error 2^-57.32 */
static const double sin_f64[] = { -0x1.5555555555555p-3, 0x1.111111111110bp-7,   -0x1.a01a01a018adfp-13,
                                  0x1.71de3a5338c91p-19, -0x1.ae64529724a97p-26, 0x1.612091da69c94p-33,
                                  -0x1.aaa4cc4045fc5p-41 };
/* (cos(x) - 1 + z/2) / z^2, z = x^2 on [0.0, 0.61747], error 2^-63.62 */
static const double cos_f64[] = { 0x1.5555555555550p-5,   -0x1.6c16c16c158f6p-10, 0x1.a01a019d4a36cp-16,
                                  -0x1.27e4f865973e0p-22, 0x1.1eea205c20ee4p-29,  -0x1.8fc5a2d7702f1p-37 };
/* (tan(x) / x - 1) / z, z = x^2 on [0.0, 0.61747], error 2^-56.17 */
static const double tan_f64[] = { 0x1.55555555554fap-2,   0x1.1111111117d81p-3,   0x1.ba1ba1b4966b8p-5,
                                  0x1.664f49a2bdee9p-6,   0x1.226e12cdbf446p-7,   0x1.d6d927ff041fcp-9,
                                  0x1.7d5bc1b05e103p-10,  0x1.37f84680a754fp-11,  0x1.d28194d429704p-13,
                                  0x1.1e173c243051ep-13,  -0x1.b8cce542e106ep-16, 0x1.76e1aa1661fbap-14,
                                  -0x1.783be4e4fa938p-15, 0x1.5df88c698322dp-16 };
/* pi/2 in parts; n * the first two is exact for |n| < 65536 */
static const double pio2_f32[] = { 0x1.9200000000000p+0, 0x1.fc00000000000p-12, -0x1.5777a60000000p-21,
                                   0x1.84698a0000000p-48 };
/* pi/2 in parts; n * the first two is exact for |n| < 2^20 */
static const double pio2_f64[] = { 0x1.921fb54400000p+0, 0x1.0b46200000000p-34, -0x1.cb3b399d747f2p-55,
                                   -0x1.f1976b7ed8fbcp-110 };
/* 2/pi, the first 1280 bits behind the binary point */
static const uint64_t two_over_pi[] = {
    0xa2f9836e4e441529u, 0xfc2757d1f534ddc0u, 0xdb6295993c439041u, 0xfe5163abdebbc561u, 0xb7246e3a424dd2e0u,
    0x06492eea09d1921cu, 0xfe1deb1cb129a73eu, 0xe88235f52ebb4484u, 0xe99c7026b45f7e41u, 0x3991d639835339f4u,
    0x9c845f8bbdf9283bu, 0x1ff897ffde05980fu, 0xef2f118b5a0a6d1fu, 0x6d367ecf27cb09b7u, 0x4f463f669e5fea2du,
    0x7527bac7ebe5f17bu, 0x3d0739f78a5292eau, 0x6bfb5fb11f8d5d08u, 0x56033046fc7b6babu, 0xf0cfbc209af4361du
};

/* (asin(x) / x - 1) / z, z = x^2 on [0.0, 0.2501], error 2^-27.61 */
static const double asin_f32[] = { 0x1.5555c80000000p-3, 0x1.3301fc0000000p-4, 0x1.747d060000000p-5,
                                   0x1.8c2d820000000p-6, 0x1.596d640000000p-5 };
/* (asin(x) / x - 1) / z, z = x^2 on [0.0, 0.2501], error 2^-59.82 */
static const double asin_f64[] = { 0x1.5555555555573p-3, 0x1.333333332e71bp-4, 0x1.6db6db71dcb89p-5,
                                   0x1.f1c71aa50f568p-6, 0x1.6e8bdd6980293p-6, 0x1.1c4a068167d77p-6,
                                   0x1.ca1dc8790dfa0p-7, 0x1.7591ff7b2cd83p-7, 0x1.61001c32120ebp-7,
                                   0x1.e90e110e941abp-9, 0x1.62cb1db6f6f7bp-6, -0x1.56fc9c7b3d2ddp-6,
                                   0x1.0b015a59f5f7ap-5 };
/* (atan(x) / x - 1) / z, z = x^2 on [0.0, 0.17166], error 2^-30.41 */
static const double atan_f32[] = { -0x1.55554a0000000p-2, 0x1.9991e20000000p-3, -0x1.23b99c0000000p-3,
                                   0x1.b2239a0000000p-4, -0x1.f2e0100000000p-5 };
/* (atan(x) / x - 1) / z, z = x^2 on [0.0, 0.17166], error 2^-59.42 */
static const double atan_f64[] = { -0x1.555555555553ep-2, 0x1.99999999959f5p-3,  -0x1.24924922b4915p-3,
                                   0x1.c71c70e83d5fbp-4,  -0x1.745cf90e6b5fap-4, 0x1.3b111beef5341p-4,
                                   -0x1.10ebd2a68d2d6p-4, 0x1.df1088a4d3caep-5,  -0x1.9cd75defbae9fp-5,
                                   0x1.37df5ccec61c6p-5,  -0x1.257bd21425a85p-6 };
/* pi in parts */
static const double pi_f32[] = { 0x1.921fb60000000p+1, -0x1.777a5c0000000p-24 };
/* pi in parts */
static const double pi_f64[] = { 0x1.921fb54442d18p+1, 0x1.1a62633145c07p-53 };

/* erf(x) / x - 1, z = x^2 on [0.0, 1.0], error 2^-29.39 */
static const double erf_f32[] = { 0x1.06eba80000000p-3,  -0x1.81273e0000000p-2, 0x1.ce2ce60000000p-4,
                                  -0x1.b7f71a0000000p-6, 0x1.53f2240000000p-8,  -0x1.a3515e0000000p-11,
                                  0x1.4771fe0000000p-14 };
/* erf(x) / x - 1, z = x^2 on [0.0, 1.0], error 2^-56.3 */
static const double erf_f64[] = { 0x1.06eba8214db69p-3,   -0x1.812746b0379e6p-2,  0x1.ce2f21a042b20p-4,
                                  -0x1.b82ce3128499dp-6,  0x1.565bcd0db02e7p-8,   -0x1.c02db3d8ed2bap-11,
                                  0x1.f9a321a11e9bap-14,  -0x1.f4d1df3959ec6p-17, 0x1.b9def19ea887dp-20,
                                  -0x1.5f1d36c82155cp-23, 0x1.f7a4126c1b129p-27,  -0x1.386ac180d3206p-30,
                                  0x1.0579acaad82eap-34 };
/* log(erfc(x)), weighted by erfc(x) on [1.0, 4.0], error 2^-29.33 */
static const double erf_tail_f32[] = { -0x1.35e5520000000p-14, -0x1.20e16a0000000p+0, -0x1.45443a0000000p-1,
                                       -0x1.b3ca620000000p-4,  0x1.8a16360000000p-6,  -0x1.f4d6be0000000p-9,
                                       0x1.86e5380000000p-12,  -0x1.1667600000000p-16 };
/* e^(t^2) erfc(t) (1 + 2t), q = (t - 2) / (t + 2) on [-1.0, 0.69231], error 2^-25.07 */
static const double erfcx_f32[] = { 0x1.46e80e0000000p+0,   -0x1.7bf5fa0000000p-4, -0x1.54085c0000000p-3,
                                    0x1.4fface0000000p-3,   -0x1.bc07a60000000p-5, -0x1.076dd20000000p-7,
                                    0x1.1ad7440000000p-7,   0x1.48de240000000p-10, -0x1.4826e40000000p-10,
                                    -0x1.67bf300000000p-12, 0x1.37ec9c0000000p-15 };
/* e^(t^2) erfc(t) (1 + 2t), q = (t - 4) / (t + 4) on [-1.0, 0.75], error 2^-54.09 */
static const double erfcx_f64[] = { 0x1.3ba5916e9fd7fp+0,   -0x1.1df1ad154a29cp-3,  0x1.f7f5df66fd71ep-7,
                                    0x1.16ecefcfa6043p-4,   -0x1.9ddb23c3e8a4dp-4,  0x1.7fee004df6ac2p-4,
                                    -0x1.0fb06dfe58cc0p-4,  0x1.3079edf9f9aa3p-5,   -0x1.09623880774fbp-6,
                                    0x1.49c67191a99efp-8,   -0x1.8d4a9feeff42dp-11, -0x1.a1de83d059664p-13,
                                    0x1.3be0d2dda8c76p-13,  -0x1.9969d5ef0b032p-16, -0x1.78a8728a5ec86p-17,
                                    0x1.7fae625ecf3ecp-18,  0x1.443925e6790c7p-22,  -0x1.bfe1202269562p-21,
                                    0x1.0bf58f90a97ecp-24,  0x1.ec09785b7631ep-24,  -0x1.0b4807907bf87p-27,
                                    -0x1.cbf2bb252772bp-27, -0x1.d8229b21400e8p-30 };

#endif
