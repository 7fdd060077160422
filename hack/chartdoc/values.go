package main

import (
	"bytes"
	"strings"

	"go.yaml.in/yaml/v3"
)

const valuesHead = `# Values of the chart, with their defaults. Made from values.schema.json, which refuses
# what is not listed there; see README.md for the same as a table.
`

// values writes the defaults with the descriptions as comments.
func values(s *schema) ([]byte, error) {
	out := bytes.NewBufferString(valuesHead)
	for _, p := range s.properties {
		n := node(p)
		if n == nil {
			continue
		}
		out.WriteByte('\n')
		e := yaml.NewEncoder(out)
		e.SetIndent(2)
		e.CompactSeqIndent()
		if err := e.Encode(mapping(key(p), n)); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

func mapping(pairs ...*yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.MappingNode, Content: pairs}
}

// key is the node of a value's name, with what it means above it.
func key(s *schema) *yaml.Node {
	text := wrap(s.description, 98)
	for i, e := range s.examples {
		text += "\nFor example:\n"
		if i > 0 {
			text = strings.TrimSuffix(text, "For example:\n") + "or\n"
		}
		text += strings.TrimSpace(example(s.name, e))
	}
	if s.enum != nil {
		text += "\n" + s.kind() + "."
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Value: s.name, HeadComment: text}
}

func example(name string, value *yaml.Node) string {
	var out bytes.Buffer
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	e.CompactSeqIndent()
	if err := e.Encode(mapping(&yaml.Node{Kind: yaml.ScalarNode, Value: name}, block(value))); err != nil {
		panic(err) // it was parsed before
	}
	return "  " + strings.ReplaceAll(out.String(), "\n", "\n  ")
}

// node is the node of a default; nil for a value that has none.
func node(s *schema) *yaml.Node {
	if !s.section() {
		if s.value == nil {
			return nil
		}
		return block(s.value)
	}
	m := mapping()
	for _, p := range s.properties {
		if n := node(p); n != nil {
			m.Content = append(m.Content, key(p), n)
		}
	}
	return m
}

// block is n in YAML's own style, where JSON's is not needed.
func block(n *yaml.Node) *yaml.Node {
	c := &yaml.Node{Kind: n.Kind, Tag: n.Tag, Value: n.Value}
	if n.Kind == yaml.ScalarNode && (n.Value == "" || n.Value == "true" || n.Value == "false") {
		c.Style = n.Style
	}
	if n.Kind != yaml.ScalarNode && len(n.Content) == 0 {
		c.Style = yaml.FlowStyle
	}
	for _, child := range n.Content {
		c.Content = append(c.Content, block(child))
	}
	return c
}

// wrap breaks a text into lines.
func wrap(text string, width int) string {
	var out strings.Builder
	column := 0
	for word := range strings.FieldsSeq(text) {
		switch {
		case column == 0:
		case column+1+len([]rune(word)) > width:
			out.WriteByte('\n')
			column = 0
		default:
			out.WriteByte(' ')
			column++
		}
		out.WriteString(word)
		column += len([]rune(word))
	}
	return out.String()
}
