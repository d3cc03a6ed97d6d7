// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/conenat/conenat/tests/bench"
	"github.com/conenat/conenat/tests/bench/report"
	"github.com/conenat/conenat/tests/build"
)

func main() { bench.Main("compare", run) }

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	results, measureErr := report.Results{}, error(nil)
	if o.render {
		if results, err = readFile(o.out); err != nil {
			return err
		}
	} else if results, measureErr = measureAll(ctx, o); len(results.Measurements) == 0 {
		return measureErr
	}
	fmt.Print(results.Table())
	switch {
	case o.docs == "":
	case measureErr != nil:
		err = fmt.Errorf("%s is as it was: measure what failed with -merge, then -render -docs %s", o.docs, o.docs)
	default:
		err = writeDocs(o.docs, results)
	}
	return errors.Join(measureErr, err)
}

// measureAll has what was measured, with an error too.
func measureAll(ctx context.Context, o options) (results report.Results, err error) {
	if o.conenat == "" {
		if o.conenat, err = build.Binary("cmd/conenat"); err != nil {
			return results, err
		}
	}
	var older report.Results
	if o.merge {
		if older, err = readFile(o.out); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return results, err
		}
	}
	r, err := newRecorder(ctx, o, os.Stderr)
	if err != nil {
		return results, err
	}
	for _, f := range figures {
		if o.wants(f.name) {
			if err = f.measure(ctx, o, r); err != nil {
				break
			}
		}
	}
	err = errors.Join(err, errors.Join(r.failed...), r.close())
	results = r.results
	if o.merge && len(results.Measurements) > 0 {
		results = results.Merge(older)
		err = errors.Join(err, writeFile(o.out, results))
	}
	return results, err
}

func readFile(name string) (report.Results, error) {
	f, err := os.Open(name)
	if err != nil {
		return report.Results{}, err
	}
	defer f.Close()
	r, err := report.Read(f)
	if err != nil {
		return r, fmt.Errorf("%s: %w", name, err)
	}
	return r, nil
}

func writeFile(name string, r report.Results) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(r.Write(f), f.Close())
}

// writeDocs writes the page and its plots, and no other file there.
func writeDocs(dir string, r report.Results) error {
	plots, err := r.Plots()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "benchmarks"), 0o755); err != nil {
		return err
	}
	for name, svg := range plots {
		if err := os.WriteFile(filepath.Join(dir, "benchmarks", name), svg, 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "benchmarks.md"), []byte(r.Page(plots)), 0o644)
}
