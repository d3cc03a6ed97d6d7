// SPDX-License-Identifier: Apache-2.0

package initramfs

import (
	"fmt"
	"io"
	"io/fs"
)

// Archive writes a cpio archive in the "newc" format, as the kernel reads it:
// Documentation/driver-api/early-userspace/buffer-format.rst. Errors stay until Close.
type Archive struct {
	w     io.Writer
	inode int
	err   error
}

// NewArchive returns an empty archive.
func NewArchive(w io.Writer) *Archive { return &Archive{w: w} }

const (
	typeFile    = 0o100000 // S_IFREG
	typeDir     = 0o040000
	typeSymlink = 0o120000
)

// File adds a file of root's. The directories above it must have been added before.
func (a *Archive) File(name string, perm fs.FileMode, data []byte) {
	a.entry(name, typeFile|int(perm), data)
}

// Dir adds a directory of root's.
func (a *Archive) Dir(name string) { a.entry(name, typeDir|0o755, nil) }

// Symlink adds a symbolic link.
func (a *Archive) Symlink(name, target string) { a.entry(name, typeSymlink|0o777, []byte(target)) }

// Close writes the end of the archive and returns the first error that writing it met.
func (a *Archive) Close() error {
	a.entry("TRAILER!!!", 0, nil)
	return a.err
}

func (a *Archive) entry(name string, mode int, data []byte) {
	a.inode++
	const uid, gid, links, mtime, dev = 0, 0, 1, 0, 0
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.inode, mode, uid, gid, links, mtime, len(data), dev, dev, dev, dev, len(name)+1, 0)
	a.padded([]byte(header + name + "\x00"))
	a.padded(data)
}

// padded writes the bytes, and zeros up to a multiple of four: no entry's start needs more than its parts' lengths.
func (a *Archive) padded(b []byte) {
	if a.err == nil {
		_, a.err = a.w.Write(b)
	}
	if fill := -len(b) & 3; a.err == nil && fill > 0 {
		_, a.err = a.w.Write(make([]byte, fill))
	}
}
