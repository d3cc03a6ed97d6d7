// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Module is a kernel module, uncompressed.
type Module struct {
	Name string
	Data []byte
}

// Modules reads the named modules and what they depend on, in an order in which they can be loaded.
func (t *Tree) Modules(ctx context.Context, names []string) ([]Module, error) {
	dep, err := os.ReadFile(filepath.Join(t.ModulesDir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	builtin, err := os.ReadFile(filepath.Join(t.ModulesDir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	paths, err := resolve(string(dep), string(builtin), names)
	if err != nil {
		return nil, fmt.Errorf("find the modules of %s: %w", t.Release, err)
	}
	var modules []Module
	for _, p := range paths {
		data, err := os.ReadFile(filepath.Join(t.ModulesDir, p))
		if err == nil && !bytes.HasPrefix(data, []byte("\x7fELF")) {
			data, err = decompress(ctx, data)
		}
		if err != nil {
			return nil, fmt.Errorf("read module %s: %w", p, err)
		}
		modules = append(modules, Module{moduleName(p), data})
	}
	return modules, nil
}

// resolve returns the paths of the named modules and of what they depend on, dependencies first, each once. Dep and
// builtin are the texts of modules.dep and modules.builtin. What is built in is left out; a name that ends in "?" may be
// missing.
func resolve(dep, builtin string, names []string) ([]string, error) {
	lines := map[string][]string{} // by module name: its own path, then its dependencies'
	for line := range strings.Lines(dep) {
		own, needs, _ := strings.Cut(strings.TrimSpace(line), ":")
		lines[moduleName(own)] = append([]string{own}, strings.Fields(needs)...)
	}
	inKernel := map[string]bool{}
	for line := range strings.Lines(builtin) {
		inKernel[moduleName(strings.TrimSpace(line))] = true
	}
	var order, missing []string
	for _, name := range names {
		name, optional := strings.CutSuffix(name, "?")
		name = moduleName(name)
		paths := lines[name]
		if paths == nil && !inKernel[name] && !optional {
			missing = append(missing, name)
		}
		for _, p := range slices.Backward(paths) { // depmod writes the innermost dependency last
			if !slices.Contains(order, p) {
				order = append(order, p)
			}
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("not there: %s (a name that may be missing ends in ?)", strings.Join(missing, ", "))
	}
	return order, nil
}

// moduleName makes "kernel/net/x/nf-log_syslog.ko.xz" "nf_log_syslog", as modprobe(8) does.
func moduleName(p string) string {
	name, _, _ := strings.Cut(path.Base(p), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}
