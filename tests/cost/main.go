// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/conenat/conenat/tests/bench"
	"github.com/conenat/conenat/tests/cost/budget"
)

// The files, from the repository's top, where `make` runs.
const (
	budgetFile = "tests/cost/budget.yaml"
	pageFile   = "docs/cost.md"
)

func main() { bench.Main("cost", run) }

var errUsage = errors.New("want one of: cost check, cost update, cost show CONTENDER..., cost measure CONENAT [CONTENDER...]")

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 1 && args[0] == "check":
		return check(ctx)
	case len(args) == 1 && args[0] == "update":
		return update(ctx)
	case len(args) > 1 && args[0] == "show":
		b, err := inMachine(ctx, args[1:]...)
		if err == nil {
			_, err = os.Stdout.Write(b.File())
		}
		return err
	case len(args) > 1 && args[0] == "measure":
		b, err := measure(ctx, args[1], os.Stderr, args[2:]...)
		if err == nil {
			_, err = os.Stdout.Write(b.File())
		}
		return err
	}
	return errUsage
}

func check(ctx context.Context) error {
	committed, err := readBudget()
	if err != nil {
		return err
	}
	measured, err := inMachine(ctx)
	if err != nil {
		return err
	}
	report := budget.Compare(committed, measured)
	if report.Failed() { // a disturbance may have added to a row; growth is there the second time, too
		fmt.Printf("%sonce more:\n", report)
		again, err := inMachine(ctx)
		if err != nil {
			return err
		}
		report = budget.Compare(committed, budget.Least(measured, again))
	}
	fmt.Print(report)
	if report.Failed() {
		return fmt.Errorf("the costs are not those of %s: if they are meant to be, `make cost` writes them", budgetFile)
	}
	return nil
}

func update(ctx context.Context) error {
	page, err := os.ReadFile(pageFile)
	if err != nil {
		return fmt.Errorf("read the page: %w", err)
	}
	measured, err := inMachine(ctx)
	if err != nil {
		return err
	}
	again, err := inMachine(ctx)
	if err != nil {
		return err
	}
	measured = budget.Least(measured, again)
	if committed, err := readBudget(); err == nil {
		fmt.Print(budget.Compare(committed, measured))
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	text, err := measured.Page(string(page))
	if err != nil {
		return err
	}
	if err := os.WriteFile(pageFile, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write the page: %w", err)
	}
	if err := os.WriteFile(budgetFile, measured.File(), 0o644); err != nil {
		return fmt.Errorf("write the budget: %w", err)
	}
	return nil
}

func readBudget() (budget.Budget, error) {
	text, err := os.ReadFile(budgetFile)
	if err != nil {
		return budget.Budget{}, fmt.Errorf("read the budget: %w", err)
	}
	return budget.Parse(text)
}
