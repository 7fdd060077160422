package main

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

//go:embed intro.md
var intro string

// readme writes the table of values below the introduction.
func readme(s *schema) []byte {
	out := bytes.NewBufferString(strings.TrimSpace(intro) + "\n\n## Values\n\nMade from `values.schema.json` by `make generate`; a value that is not listed here is refused.\n")
	var single []*schema
	for _, p := range s.properties {
		if !p.section() && len(p.properties) == 0 {
			single = append(single, p)
			continue
		}
		fmt.Fprintf(out, "\n### %s\n\n%s\n", p.name, p.description)
		for _, e := range p.examples {
			fmt.Fprintf(out, "\n```yaml\n%s\n```\n", strings.TrimSpace(unindent(example(p.name, e))))
		}
		out.WriteString(tableHead)
		if p.section() {
			rows(out, p.name+".", p.properties)
			continue
		}
		row(out, p.name, p)
		if p.items != nil {
			rows(out, p.name+"[].", p.items.properties)
		}
	}
	fmt.Fprintf(out, "\n### Others\n%s", tableHead)
	rows(out, "", single)
	return out.Bytes()
}

const tableHead = "\n| value | type | default | meaning |\n|---|---|---|---|\n"

func rows(out *bytes.Buffer, prefix string, list []*schema) {
	for _, p := range list {
		if p.section() {
			rows(out, prefix+p.name+".", p.properties)
			continue
		}
		row(out, prefix+p.name, p)
	}
}

func row(out *bytes.Buffer, name string, s *schema) {
	value := ""
	if s.value != nil {
		value = "`" + compact(s.value) + "`"
	}
	fmt.Fprintf(out, "| `%s` | %s | %s | %s |\n", name, cell(s.kind()), cell(value), cell(s.description))
}

func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }

// compact is a default as JSON.
func compact(n *yaml.Node) string {
	var v any
	if err := n.Decode(&v); err != nil {
		panic(err) // it was parsed before
	}
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // of strings, numbers, lists and maps with string keys
	}
	return string(text)
}

func unindent(text string) string { return strings.ReplaceAll("\n"+text, "\n  ", "\n") }
