// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
)

// committed is a file of the repository, as a tree of its own.
func committed(t *testing.T, paths ...string) tree {
	t.Helper()
	files := tree{}
	for _, path := range paths {
		content, err := os.ReadFile(filepath.Join("../..", path))
		if err != nil {
			t.Fatal(err)
		}
		files[path] = string(content)
	}
	return files
}

// A function that writes depth bytes below its frame pointer and then runs body.
func function(name string, depth int16, body ...asm.Instruction) asm.Instructions {
	program := asm.Instructions{asm.Mov.Imm(asm.R0, 0).WithSymbol(name)}
	if depth > 0 {
		program = append(program, asm.StoreMem(asm.RFP, -depth, asm.R0, asm.Byte))
	}
	return append(append(program, body...), asm.Return())
}

func call(name string) asm.Instruction {
	return asm.Instruction{OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(asm.Call), Src: asm.PseudoCall, Constant: -1}.WithReference(name)
}

func callback(name string) asm.Instruction {
	return asm.Instruction{OpCode: asm.LoadImmOp(asm.DWord), Dst: asm.R2, Src: asm.PseudoFunc}.WithReference(name)
}

func program(functions ...asm.Instructions) (all asm.Instructions) {
	for _, f := range functions {
		all = append(all, f...)
	}
	return all
}

func TestStackProblems(t *testing.T) {
	frames := program(function("f0", 1, call("f1")), function("f1", 1, call("f2")), function("f2", 1, call("f3")),
		function("f3", 1, call("f4")), function("f4", 1, call("f5")), function("f5", 1, call("f6")), function("f6", 1, call("f7")))
	for name, test := range map[string]struct {
		program asm.Instructions
		want    []string
	}{
		"just fits": {program: program(function("main", 384, call("f")), function("f", 128))},
		"in steps of 32": {
			program: program(function("main", 385, call("f")), function("f", 97)),
			want:    []string{"544 bytes of stack in 2 frames, at most 512 in 8: main 416 > f 128"},
		},
		"no bytes are a step, too": {
			program: program(function("main", 512, call("f")), function("f", 0)),
			want:    []string{"544 bytes of stack in 2 frames, at most 512 in 8: main 512 > f 32"},
		},
		"an address is handed over": {
			program: program(function("main", 384, call("f")),
				function("f", 8, asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -160), call("g")), function("g", 0)),
			want: []string{"544 bytes of stack in 2 frames, at most 512 in 8: main 384 > f 160"},
		},
		"a register that was one": {
			program: program(function("main", 8, asm.Mov.Reg(asm.R2, asm.RFP), asm.Mov.Imm(asm.R2, 0), asm.Add.Imm(asm.R2, -4000),
				asm.LoadMem(asm.R3, asm.R2, -4000, asm.Byte))),
		},
		"a callback of bpf_loop": {
			program: program(function("main", 512, callback("f"), asm.FnLoop.Call()), function("f", 0)),
			want:    []string{"544 bytes of stack in 2 frames, at most 512 in 8: main 512 > f 32"},
		},
		"a timer's has a stack of its own": {
			program: program(function("main", 512, callback("f"), asm.FnTimerSetCallback.Call()), function("f", 512)),
		},
		"and that one fills up": {
			program: program(function("main", 0, callback("f"), asm.FnTimerSetCallback.Call()), function("f", 512, call("g")), function("g", 1)),
			want:    []string{"544 bytes of stack in 2 frames, at most 512 in 8: f 512 > g 32"},
		},
		"eight frames": {program: program(frames, function("f7", 0))},
		"nine frames": {
			program: program(frames, function("f7", 1, call("f8")), function("f8", 1)),
			want: []string{"288 bytes of stack in 9 frames, at most 512 in 8: " +
				"f0 32 > f1 32 > f2 32 > f3 32 > f4 32 > f5 32 > f6 32 > f7 32 > f8 32"},
		},
		"the deepest first": {
			program: program(function("main", 400, call("f"), call("g"), call("h"), call("i")),
				function("f", 128), function("g", 256), function("h", 160), function("i", 192)),
			want: []string{
				"672 bytes of stack in 2 frames, at most 512 in 8: main 416 > g 256",
				"608 bytes of stack in 2 frames, at most 512 in 8: main 416 > i 192",
				"576 bytes of stack in 2 frames, at most 512 in 8: main 416 > h 160",
			},
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			if diff := cmp.Diff(test.want, stackProblems(functionsOf(test.program))); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}
