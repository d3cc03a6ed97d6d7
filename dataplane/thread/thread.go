// SPDX-License-Identifier: Apache-2.0

package thread

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Run calls f on a thread that ends with it, and returns its error. Never on the process's first thread: that one Go does not end
// when a goroutine that is locked to it does (runtime.mexit), so that it would stay in f's namespaces, and keep them.
func Run(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() != unix.Getpid() {
			done <- f()
			return
		}
		done <- Run(f) // which gets another thread, as long as this goroutine has the first one
		runtime.UnlockOSThread()
	}()
	return <-done
}
