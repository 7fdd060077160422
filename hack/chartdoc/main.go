// Command chartdoc makes those files of the chart that follow from others:
// values.yaml and README.md from values.schema.json, which is the one place where
// a value's meaning and default are written, and copies of config/crd and of the
// rules in config/rbac, since a chart cannot read files outside of its directory.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	if err := run("."); err != nil {
		fmt.Fprintln(os.Stderr, "chartdoc:", err)
		os.Exit(1)
	}
}

// run writes the files of the repository at root, and removes copies of what is
// no more.
func run(root string) error {
	files, err := generate(root)
	if err != nil {
		return err
	}
	chart := filepath.Join(root, "charts", "apparate")
	for _, dir := range copied {
		if err := os.RemoveAll(filepath.Join(chart, dir)); err != nil {
			return err
		}
	}
	for name, text := range files {
		path := filepath.Join(chart, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// copied are the directories of the chart in which everything is generated.
var copied = []string{"files/crds", "files/rules"}

// generate returns the generated files by their path in the chart.
func generate(root string) (map[string][]byte, error) {
	files := map[string][]byte{}
	crds, err := filepath.Glob(filepath.Join(root, "config", "crd", "*.yaml"))
	if err != nil {
		return nil, err
	}
	if len(crds) == 0 {
		return nil, errors.New("config/crd has no files: run this at the top of the repository, after controller-gen")
	}
	for _, path := range crds {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		files["files/crds/"+filepath.Base(path)] = text
	}
	roles, err := os.ReadFile(filepath.Join(root, "config", "rbac", "role.yaml"))
	if err != nil {
		return nil, err
	}
	if err := cutRules(string(roles), files); err != nil {
		return nil, fmt.Errorf("config/rbac/role.yaml: %w", err)
	}
	text, err := os.ReadFile(filepath.Join(root, "charts", "apparate", "values.schema.json"))
	if err != nil {
		return nil, err
	}
	s, err := parse(text)
	if err != nil {
		return nil, fmt.Errorf("values.schema.json: %w", err)
	}
	if files["values.yaml"], err = values(s); err != nil {
		return nil, err
	}
	files["README.md"] = readme(s)
	return files, nil
}

// cutRules takes the rules out of each role: the chart names and binds roles
// itself.
func cutRules(roles string, files map[string][]byte) error {
	for doc := range strings.SplitSeq(roles, "---\n") {
		head, rules, found := strings.Cut(doc, "\nrules:\n")
		if !found {
			continue
		}
		var name string
		switch {
		case strings.Contains(head, "kind: Role\n"):
			name = "leader-election"
		case strings.Contains(head, "name: apparate-operator"):
			name = "operator"
		case strings.Contains(head, "name: apparate-pull-secrets"):
			name = "pull-secrets"
		case strings.Contains(head, "name: apparate-profiles"):
			name = "profiles"
		default:
			return fmt.Errorf("the chart knows no such role:\n%s", head)
		}
		path := "files/rules/" + name + ".yaml"
		if files[path] != nil {
			return fmt.Errorf("two roles for %s", path)
		}
		files[path] = append(bytes.TrimSpace([]byte(rules)), '\n')
	}
	return nil
}
