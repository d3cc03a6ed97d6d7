// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// What Linux allows a chain of calls: MAX_BPF_STACK and MAX_CALL_FRAMES. Linux 6.1 counts each frame in steps of
// 32 bytes (round_up in check_max_stack_depth_subprog); later kernels, in steps of 16 where the JIT lets them.
const (
	stackBytes  = 512
	stackStep   = 32
	stackFrames = 8
	stackShown  = 3 // of the chains that are too deep, the deepest
)

// bpfObjects are IPv4's and IPv6's.
var bpfObjects = []string{"bpf/nat_bpfel.o", "bpf/nat6_bpfel.o"}

// stackDepth: every chain of calls of the committed objects fits the stack as Linux 6.1 counts it. The verifier there
// says so too, but in a virtual machine, a minute later, and without the names.
func stackDepth(t tree) (problems []string) {
	for _, object := range bpfObjects {
		content, ok := t[object]
		if !ok {
			problems = append(problems, object+": missing")
			continue
		}
		spec, err := ebpf.LoadCollectionSpecFromReader(strings.NewReader(content))
		if err != nil {
			problems = append(problems, fmt.Sprintf("%s: read the object: %v", object, err))
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(spec.Programs)) {
			for _, problem := range stackProblems(functionsOf(spec.Programs[name].Instructions)) {
				problems = append(problems, fmt.Sprintf("%s: %s: %s", object, name, problem))
			}
		}
	}
	return problems
}

// A bpfFunction is what counts of one function of a program.
type bpfFunction struct {
	name  string
	depth int      // bytes below the frame pointer
	calls []string // and callbacks of helpers, which run on the caller's stack
	async []string // callbacks of timers, which run on their own
}

// functionsOf takes a program apart. It reads each instruction once, in order: a register is an address on the stack from
// its copy of the frame pointer to the next write, which is how clang uses one.
func functionsOf(program asm.Instructions) (functions []bpfFunction) {
	var f *bpfFunction
	var pointer [asm.R10 + 1]bool
	var callbacks []string // loaded, and not passed to a helper yet
	for _, ins := range program {
		if name := ins.Symbol(); name != "" {
			functions = append(functions, bpfFunction{name: name})
			f = &functions[len(functions)-1]
			pointer, callbacks = [asm.R10 + 1]bool{asm.R10: true}, nil
		}
		if f == nil {
			continue
		}
		switch {
		case ins.IsFunctionCall():
			f.calls = append(f.calls, ins.Reference())
		case ins.IsLoadOfFunctionPointer():
			callbacks = append(callbacks, ins.Reference())
		case ins.IsBuiltinCall() && asm.BuiltinFunc(ins.Constant) == asm.FnTimerSetCallback:
			f.async, callbacks = append(f.async, callbacks...), nil
		case ins.IsBuiltinCall():
			f.calls, callbacks = append(f.calls, callbacks...), nil
		}
		f.depth = max(f.depth, -stackOffset(ins, &pointer))
	}
	return functions
}

// stackOffset is the lowest address below the frame pointer that an instruction reads, writes or makes; 0: none.
func stackOffset(ins asm.Instruction, pointer *[asm.R10 + 1]bool) int {
	class := ins.OpCode.Class()
	switch {
	case class == asm.StClass || class == asm.StXClass:
		if pointer[ins.Dst] {
			return min(0, int(ins.Offset))
		}
	case class == asm.LdXClass:
		onStack := pointer[ins.Src]
		pointer[ins.Dst] = false
		if onStack {
			return min(0, int(ins.Offset))
		}
	case class.IsALU():
		op := ins.OpCode.ALUOp()
		if op == asm.Mov && ins.OpCode.Source() == asm.RegSource {
			pointer[ins.Dst] = pointer[ins.Src]
			return 0
		}
		if op == asm.Add && ins.OpCode.Source() == asm.ImmSource && pointer[ins.Dst] {
			return min(0, int(ins.Constant))
		}
		pointer[ins.Dst] = false
	case class == asm.LdClass:
		pointer[ins.Dst] = false
	}
	return 0
}

// A chain is a way down through the calls, from a program or a timer's callback on.
type chain struct {
	functions []bpfFunction
	size      int // bytes, as Linux 6.1 counts them
}

func (c chain) String() string {
	var names []string
	for _, f := range c.functions {
		names = append(names, fmt.Sprintf("%s %d", f.name, frameSize(f)))
	}
	return strings.Join(names, " > ")
}

func frameSize(f bpfFunction) int {
	return (max(f.depth, 1) + stackStep - 1) / stackStep * stackStep
}

// stackProblems names the deepest chains of a program that do not fit.
func stackProblems(functions []bpfFunction) (problems []string) {
	byName := map[string]bpfFunction{}
	var roots []bpfFunction
	for i, f := range functions {
		byName[f.name] = f
		if i == 0 {
			roots = append(roots, f)
		}
	}
	for _, f := range functions {
		for _, callback := range f.async {
			roots = append(roots, byName[callback])
		}
	}
	var deep []chain
	for _, root := range roots {
		walkChains(byName, chain{}, root, &deep)
	}
	slices.SortStableFunc(deep, func(a, b chain) int { return cmp.Compare(b.size, a.size) })
	for _, c := range deep[:min(len(deep), stackShown)] {
		problems = append(problems, fmt.Sprintf("%d bytes of stack in %d frames, at most %d in %d: %v",
			c.size, len(c.functions), stackBytes, stackFrames, c))
	}
	return problems
}

// walkChains appends to deep each chain that is too deep, up to the call that makes it so.
func walkChains(byName map[string]bpfFunction, c chain, f bpfFunction, deep *[]chain) {
	c.functions = append(slices.Clip(c.functions), f)
	c.size += frameSize(f)
	if c.size > stackBytes || len(c.functions) > stackFrames {
		*deep = append(*deep, c)
		return
	}
	for _, callee := range f.calls {
		walkChains(byName, c, byName[callee], deep)
	}
}
