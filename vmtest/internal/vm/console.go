// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"io"
	"regexp"
	"strings"
)

// console takes what the kernel writes: up to a limit into a file, the last lines in memory, and a panic by its words.
type console struct {
	file  io.Writer
	limit int64 // bytes
	taken int64
	line  []byte   // unfinished
	last  []string // finished, the newest last
	panic string
	int3  bool // an oops by a breakpoint
}

const keptLines = 40

var (
	panicWords = regexp.MustCompile(`Kernel panic - not syncing: .*`)
	int3Words  = regexp.MustCompile(`\bint3: 0000 \[#1\]`)
)

// write returns whether something happened that the machine's owner must know: a panic, or more than the limit.
func (c *console) write(b []byte) (panicked, full bool, err error) {
	before := c.panic
	c.taken += int64(len(b))
	if c.taken > c.limit {
		return false, true, nil
	}
	if _, err := c.file.Write(b); err != nil {
		return false, false, err
	}
	for chunk := range bytes.Lines(b) {
		c.line = append(c.line, chunk...)
		if bytes.HasSuffix(c.line, []byte("\n")) {
			c.finishLine()
		}
	}
	return before == "" && c.panic != "", false, nil
}

func (c *console) finishLine() {
	line := strings.TrimRight(string(c.line), "\r\n")
	c.line = c.line[:0]
	c.last = append(c.last, line)
	c.last = c.last[max(0, len(c.last)-keptLines):]
	c.int3 = c.int3 || int3Words.MatchString(line)
	if c.panic == "" {
		c.panic = panicWords.FindString(line)
	}
}

// lines returns the last lines, an unfinished one too.
func (c *console) lines() []string {
	if len(c.line) > 0 {
		c.finishLine()
	}
	return c.last
}
