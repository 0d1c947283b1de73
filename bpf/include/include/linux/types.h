/* The fixed-width types that BPF programs and bcc's helpers use. */
#ifndef BPFLAME_LINUX_TYPES_H
#define BPFLAME_LINUX_TYPES_H
typedef unsigned char __u8, u8, uint8_t;
typedef signed char __s8, s8, int8_t;
typedef unsigned short __u16, u16, uint16_t, __be16, __le16, __sum16;
typedef signed short __s16, s16, int16_t;
typedef unsigned int __u32, u32, uint32_t, __be32, __le32, __wsum;
typedef signed int __s32, s32, int32_t, pid_t;
typedef unsigned long long __u64, u64, uint64_t, __be64, __le64, __aligned_u64;
typedef signed long long __s64, s64, int64_t;
typedef __SIZE_TYPE__ size_t;
typedef __UINTPTR_TYPE__ uintptr_t;
typedef _Bool bool;
enum { false, true };
#define NULL ((void *)0)
#define __always_inline inline __attribute__((always_inline))
#endif
