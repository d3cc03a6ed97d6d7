// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/goccy/go-yaml"
)

// File is what kernels.yaml declares.
type File struct {
	Mirror  string     `yaml:"mirror"` // of Debian's archives, without the archive's name
	Kernels []Kernel   `yaml:"kernels"`
	Modules [][]string `yaml:"modules"` // to load, grouped for the reader; "name?" may be missing
}

// Kernel is one declared kernel.
type Kernel struct {
	Name        string            `yaml:"name"`        // what a user calls it, "6.12"
	Unsupported bool              `yaml:"unsupported"` // below what conenat needs
	Suite       string            `yaml:"suite"`       // archive and suite, "debian-security bookworm-security"
	Version     string            `yaml:"version"`     // of every package
	Packages    map[string]string `yaml:"packages"`    // name to SHA-256 in hexadecimal
}

var (
	kernelName = regexp.MustCompile(`^[0-9]+\.[0-9]+[a-z0-9.-]*$`)
	suiteWords = regexp.MustCompile(`^[a-z-]+ [a-z-]+$`)
	hexSHA256  = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// Parse reads and checks kernels.yaml. Its errors name the line, or the kernel.
func Parse(text []byte) (*File, error) {
	var f File
	if err := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict()).Decode(&f); err != nil {
		return nil, fmt.Errorf("parse the list of kernels: %s", yaml.FormatError(err, false, false))
	}
	if f.Mirror == "" {
		return nil, errors.New("parse the list of kernels: no mirror")
	}
	names := map[string]bool{}
	for _, k := range f.Kernels {
		if err := k.check(); err != nil {
			return nil, fmt.Errorf("parse the list of kernels: kernel %q: %w", k.Name, err)
		}
		if names[k.Name] {
			return nil, fmt.Errorf("parse the list of kernels: kernel %q is declared twice", k.Name)
		}
		names[k.Name] = true
	}
	return &f, nil
}

func (k Kernel) check() error {
	switch {
	case !kernelName.MatchString(k.Name):
		return errors.New(`the name must be like "6.12", in quotes`)
	case !suiteWords.MatchString(k.Suite):
		return fmt.Errorf("suite %q: want an archive and a suite", k.Suite)
	case k.Version == "":
		return errors.New("no version")
	case len(k.Packages) == 0:
		return errors.New("no packages")
	}
	for name, sum := range k.Packages {
		if !hexSHA256.MatchString(sum) {
			return fmt.Errorf("package %s: %q is no SHA-256 in hexadecimal", name, sum)
		}
	}
	return nil
}

// Find returns the kernels that a user named: one, or every supported one for "all".
func (f *File) Find(name string) (found []Kernel, err error) {
	var names []string
	for _, k := range f.Kernels {
		if k.Name == name || name == "all" && !k.Unsupported {
			found = append(found, k)
		}
		names = append(names, k.Name)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no kernel %q is declared: use one of %s, or all", name, strings.Join(names, ", "))
	}
	return found, nil
}
