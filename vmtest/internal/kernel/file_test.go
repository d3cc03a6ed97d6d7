// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var sum = strings.Repeat("0123456789abcdef", 4)

const header = "mirror: http://m\nkernels:\n"

func TestParse(t *testing.T) {
	got, err := Parse([]byte(header + `- {name: "6.12", suite: a b, version: 1-2, packages: {linux-image: ` + sum + `}}
- {name: "5.10", unsupported: true, suite: a-x b, version: "3", packages: {p: ` + sum + `, q: ` + sum + `}}
modules:
- [veth, "netkit?"]
- [tun]
`))
	if err != nil {
		t.Fatal(err)
	}
	want := &File{
		Mirror: "http://m",
		Kernels: []Kernel{
			{Name: "6.12", Suite: "a b", Version: "1-2", Packages: map[string]string{"linux-image": sum}},
			{Name: "5.10", Unsupported: true, Suite: "a-x b", Version: "3", Packages: map[string]string{"p": sum, "q": sum}},
		},
		Modules: [][]string{{"veth", "netkit?"}, {"tun"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParseRefuses(t *testing.T) {
	good := `- {name: "6.1", suite: a b, version: "1", packages: {p: ` + sum + `}}` + "\n"
	for name, test := range map[string]struct{ text, want string }{
		"no_mirror":        {"kernels: []", "no mirror"},
		"unknown_key":      {header + "modulse: []", `unknown field "modulse"`},
		"number_for_name":  {header + strings.Replace(good, `"6.1"`, `six`, 1), `kernel "six": the name must be like "6.12"`},
		"one_word_suite":   {header + strings.Replace(good, "a b", "b", 1), `suite "b"`},
		"no_version":       {header + strings.Replace(good, `version: "1", `, "", 1), "no version"},
		"no_packages":      {header + `- {name: "6.1", suite: a b, version: "1"}`, "no packages"},
		"short_checksum":   {header + strings.Replace(good, sum, sum[1:], 1), "package p: "},
		"the_same_twice":   {header + good + good, "declared twice"},
		"name_with_a_path": {header + strings.Replace(good, `"6.1"`, `"6.1/../x"`, 1), "the name must be"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(test.text))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}

// TestDeclared parses the file that vmtest has.
func TestDeclared(t *testing.T) {
	text, err := os.ReadFile("../../kernels.yaml")
	if err != nil {
		t.Fatal(err)
	}
	f, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Modules) == 0 || len(f.Kernels) == 0 {
		t.Errorf("%d kernels, %d groups of modules", len(f.Kernels), len(f.Modules))
	}
}

func TestFind(t *testing.T) {
	f := &File{Kernels: []Kernel{{Name: "5.10", Unsupported: true}, {Name: "6.1"}, {Name: "6.12"}}}
	for _, test := range []struct {
		name string
		want []string
		err  string
	}{
		{name: "6.1", want: []string{"6.1"}},
		{name: "5.10", want: []string{"5.10"}},
		{name: "all", want: []string{"6.1", "6.12"}},
		{name: "6", err: `no kernel "6" is declared: use one of 5.10, 6.1, 6.12, or all`},
	} {
		t.Run(test.name, func(t *testing.T) {
			found, err := f.Find(test.name)
			var got []string
			for _, k := range found {
				got = append(got, k.Name)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if (err == nil) != (test.err == "") || err != nil && err.Error() != test.err {
				t.Errorf("error %v, want %q", err, test.err)
			}
		})
	}
}
