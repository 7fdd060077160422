package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// schema is what is of interest in a JSON schema, in the order of the file.
type schema struct {
	name        string
	description string
	types       []string
	enum        []string
	value       *yaml.Node // the default
	examples    []*yaml.Node
	properties  []*schema
	items       *schema
}

// parse reads a JSON schema; JSON is YAML, and a YAML node keeps the order of keys.
func parse(text []byte) (*schema, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	if len(doc.Content) != 1 {
		return nil, errors.New("it is empty")
	}
	return read("", doc.Content[0], get(doc.Content[0], "definitions"))
}

// get returns the value of a key of a mapping, nil where it has none.
func get(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

func read(name string, n, definitions *yaml.Node) (*schema, error) {
	s := &schema{name: name, value: get(n, "default")}
	// What is said beside a reference wins over what it refers to.
	layers := []*yaml.Node{n}
	if ref := get(n, "$ref"); ref != nil {
		d := get(definitions, strings.TrimPrefix(ref.Value, "#/definitions/"))
		if d == nil {
			return nil, fmt.Errorf("%s refers to %s, which is not there", name, ref.Value)
		}
		layers = append(layers, d)
	}
	for _, l := range layers {
		if d := get(l, "description"); d != nil && s.description == "" {
			s.description = d.Value
		}
		if t := get(l, "type"); t != nil && s.types == nil {
			s.types = list(t)
		}
		if e := get(l, "enum"); e != nil && s.enum == nil {
			s.enum = list(e)
		}
		if e := get(l, "examples"); e != nil {
			s.examples = e.Content
		}
		if p := get(l, "properties"); p != nil {
			for i := 0; i+1 < len(p.Content); i += 2 {
				c, err := read(p.Content[i].Value, p.Content[i+1], definitions)
				if err != nil {
					return nil, err
				}
				s.properties = append(s.properties, c)
			}
		}
		if i := get(l, "items"); i != nil && s.items == nil {
			var err error
			if s.items, err = read("", i, definitions); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

// list returns the values of a sequence, or the one of a scalar.
func list(n *yaml.Node) (values []string) {
	if n.Kind != yaml.SequenceNode {
		return []string{n.Value}
	}
	for _, c := range n.Content {
		values = append(values, c.Value)
	}
	return values
}

// section says whether s is an object whose properties are values of their own.
func (s *schema) section() bool { return s.value == nil && len(s.properties) > 0 }

// kind is what may be written for s, for people.
func (s *schema) kind() string {
	if s.enum != nil {
		return strings.Join(s.enum, ", ")
	}
	return strings.Join(slices.DeleteFunc(slices.Clone(s.types), func(t string) bool { return t == "null" }), " or ")
}
