// SPDX-License-Identifier: Apache-2.0

package budget

import (
	"errors"
	"fmt"

	"github.com/goccy/go-yaml"
)

// Budget is a measurement, or what one may come to.
type Budget struct {
	Kernel string `yaml:"kernel"` // release
	Rows   []Row  `yaml:"rows"`
}

// Row is what one packet costs, named CONTENDER/FAMILY/PROTOCOL/CASE.
type Row struct {
	Name         string `yaml:"name"`
	Instructions int64  `yaml:"instructions"`
}

// check refuses what no measurement can be: an empty one would otherwise agree with an empty budget.
func (b Budget) check() error {
	if b.Kernel == "" {
		return errors.New("no kernel")
	}
	if len(b.Rows) == 0 {
		return errors.New("no rows")
	}
	seen := map[string]bool{}
	for _, r := range b.Rows {
		switch {
		case r.Name == "":
			return errors.New("a row without a name")
		case seen[r.Name]:
			return fmt.Errorf("row %s is there twice", r.Name)
		case r.Instructions <= 0:
			return fmt.Errorf("row %s: %d instructions", r.Name, r.Instructions)
		}
		seen[r.Name] = true
	}
	return nil
}

// Parse reads a budget's file, or a measurement.
func Parse(text []byte) (Budget, error) {
	var b Budget
	if err := yaml.UnmarshalWithOptions(text, &b, yaml.Strict()); err != nil {
		return b, fmt.Errorf("parse the costs: %w", err)
	}
	if err := b.check(); err != nil {
		return b, fmt.Errorf("parse the costs: %w", err)
	}
	return b, nil
}

const fileHeader = `# Instructions that a packet costs, as ` + "`make cost`" + ` measures and writes them: docs/cost.md says how, and what they mean.
# CI fails on growth of more than 3 % that the commit does not write here.
`

// File is the budget's text.
func (b Budget) File() []byte {
	text := fileHeader + fmt.Sprintf("kernel: %s\nrows:\n", b.Kernel)
	for _, r := range b.Rows {
		text += fmt.Sprintf("  - {name: %s, instructions: %d}\n", r.Name, r.Instructions)
	}
	return []byte(text)
}
