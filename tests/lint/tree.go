// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// A tree is what the rules look at: each file's content by its slash-separated path from the top.
type tree map[string]string

// readTree reads the files under dir that git tracks. Without git (a release's tarball) every file counts,
// so that the rules hold there too.
func readTree(dir string) (tree, error) {
	paths, err := trackedFiles(dir)
	if err != nil {
		return nil, err
	}
	t := tree{}
	for _, p := range paths {
		content, err := os.ReadFile(filepath.Join(dir, p))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed, and the removal is not staged yet
		}
		if err != nil {
			return nil, fmt.Errorf("read tracked file: %w", err)
		}
		t[p] = string(content)
	}
	return t, nil
}

func trackedFiles(dir string) ([]string, error) {
	if _, err := os.Stat(filepath.Join(dir, ".git")); err != nil {
		return walk(os.DirFS(dir))
	}
	// Root may test a checkout that belongs to somebody else; listing it is harmless.
	cmd := exec.Command("git", "-c", "safe.directory=*", "ls-files", "-z")
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list the files that git tracks: %w", err)
	}
	return strings.FieldsFunc(string(out), func(r rune) bool { return r == 0 }), nil
}

func walk(fsys fs.FS) ([]string, error) {
	var paths []string
	err := fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case p == "bin":
			return fs.SkipDir
		case d.Type().IsRegular():
			paths = append(paths, p)
		}
		return nil
	})
	return paths, err
}

// source returns the paths with one of the extensions whose content people wrote.
func (t tree) source(extensions ...string) []string {
	var paths []string
	for p, content := range t {
		for _, ext := range extensions {
			if path.Ext(p) == ext && !generated(content) {
				paths = append(paths, p)
			}
		}
	}
	return paths
}

// generatedLine is the mark that https://go.dev/s/generatedcode defines; tools write it in C too.
var generatedLine = regexp.MustCompile(`(?m)^(//|/\*) Code generated .* DO NOT EDIT\.`)

func generated(content string) bool {
	return generatedLine.MatchString(content)
}

// lineOf returns the number of the line that holds the byte at offset.
func lineOf(content string, offset int) int {
	return 1 + strings.Count(content[:offset], "\n")
}
