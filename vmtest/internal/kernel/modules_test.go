// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	depText = `kernel/lib/libcrc32c.ko.xz:
kernel/net/nf_conntrack.ko.xz: kernel/net/nf_defrag_ipv6.ko.xz kernel/net/nf_defrag_ipv4.ko.xz kernel/lib/libcrc32c.ko.xz
kernel/net/nf_defrag_ipv4.ko.xz:
kernel/net/nf_defrag_ipv6.ko.xz:
kernel/net/nf-nat.ko.xz: kernel/net/nf_conntrack.ko.xz kernel/net/nf_defrag_ipv6.ko.xz kernel/net/nf_defrag_ipv4.ko.xz kernel/lib/libcrc32c.ko.xz
kernel/net/veth.ko:
`
	builtinText = "kernel/drivers/virtio/virtio_pci.ko\n"
)

func TestResolve(t *testing.T) {
	const conntrack = "kernel/lib/libcrc32c.ko.xz kernel/net/nf_defrag_ipv4.ko.xz kernel/net/nf_defrag_ipv6.ko.xz kernel/net/nf_conntrack.ko.xz"
	for name, test := range map[string]struct{ names, want, err string }{
		"alone":             {names: "veth", want: "kernel/net/veth.ko"},
		"dependencies":      {names: "nf_conntrack", want: conntrack},
		"each_once":         {names: "nf_conntrack nf_nat nf_conntrack", want: conntrack + " kernel/net/nf-nat.ko.xz"},
		"order_is_kept":     {names: "veth nf_defrag_ipv6", want: "kernel/net/veth.ko kernel/net/nf_defrag_ipv6.ko.xz"},
		"dash":              {names: "nf-nat", want: conntrack + " kernel/net/nf-nat.ko.xz"},
		"built_in":          {names: "virtio_pci veth", want: "kernel/net/veth.ko"},
		"optional":          {names: "veth?", want: "kernel/net/veth.ko"},
		"optional_missing":  {names: "netkit? veth", want: "kernel/net/veth.ko"},
		"missing":           {names: "veth netkit tun", err: "not there: netkit, tun (a name that may be missing ends in ?)"},
		"no_part_of_a_name": {names: "vet", err: "not there: vet (a name that may be missing ends in ?)"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := resolve(depText, builtinText, strings.Fields(test.names))
			if diff := cmp.Diff(test.want, strings.Join(got, " ")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if (err == nil) != (test.err == "") || err != nil && err.Error() != test.err {
				t.Errorf("error %v, want %q", err, test.err)
			}
		})
	}
}

// TestModules reads modules as they lie in a package: compressed, and not.
func TestModules(t *testing.T) {
	dir := t.TempDir()
	for name, data := range map[string][]byte{
		"modules.dep":     []byte("a.ko.xz: b.ko\nb.ko:\n"),
		"modules.builtin": nil,
		"a.ko.xz":         piped(t, []byte("\x7fELF a"), "xz", "-c", "--check=crc32"),
		"b.ko":            []byte("\x7fELF b"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := (&Tree{ModulesDir: dir}).Modules(t.Context(), []string{"a"})
	if err != nil {
		t.Fatal(err)
	}
	want := []Module{{"b", []byte("\x7fELF b")}, {"a", []byte("\x7fELF a")}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
