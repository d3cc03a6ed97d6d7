// SPDX-License-Identifier: Apache-2.0

// Package require is the only place that may skip a test (a rule of tests/lint): a skip there says why, and hides no break.
//
// A test names what it needs. What the machine has not, on a machine that is meant to be complete (CI, or a virtual machine of
// vmtest: CI or VMTEST_KERNEL is set), is a failure. A feature of the kernel is tried; where that fails, the kernel's own
// configuration decides: the test is skipped if the kernel is too old or was built without the feature, and FAILS if the kernel
// says that it has it. Where no configuration can be read, the test is skipped, but on a machine that is meant to be complete.
package require
