// Package pullsecret keeps the pull secrets of the installation's list
// (imagePullSecretsCrs of the chart) in the namespaces that it names, and in the
// imagePullSecrets of their service accounts.
//
//	file ─► Follower ─► Reconciler (a namespace) ─► Secrets, then service accounts
//
// What is ours is marked: a Secret by a label and an annotation with its own
// namespace and name (so a copy is nobody's), a reference in a service account by
// an annotation beside it. Anything else is never changed and never removed. The
// marks are all the memory there is, so an operator that starts anew goes on
// where the last one ended.
//
// When the operator is gone, Secrets and references stay: pods go on pulling. An
// empty list takes both away.
package pullsecret

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// All names every namespace or every service account.
const All = "*"

// Entry is one pull secret, with defaults filled in.
type Entry struct {
	// Name of the Secret in each namespace.
	Name string
	// Namespaces and ServiceAccounts are names, or the one name [All].
	Namespaces, ServiceAccounts []string

	username, password, server string
}

// Config is what a file says.
type Config struct {
	Entries []Entry
	// Mistakes are the entries that cannot be used: each names the entry and the
	// field, and no value that may be secret.
	Mistakes []error
	// kept are the names of bad entries: what is there for them stays as it is. A
	// bad entry whose name cannot be told keeps all.
	kept    []string
	keepAll bool
}

// MaxFile is the most bytes of a file: those of a Secret.
const MaxFile = 1 << 20

// Parse reads the list: JSON, an array of objects with the fields name,
// namespaces, serviceAccounts, type, dockerUsername, dockerPassword and
// dockerServer, all of them strings; or a single object. An error means that
// nothing of it can be used; a bad entry is one of the mistakes.
//
// Defaults: the name is apparate- and the server's, so that it stays when the
// list is sorted anew; all namespaces; all their service accounts, since the
// Secret can be read by whoever may run pods there anyhow, and a pod with an
// account of its own would otherwise fail to pull for no visible reason; docker.
func Parse(text []byte) (*Config, error) {
	if len(text) > MaxFile {
		return nil, fmt.Errorf("the file of pull secrets has more than %d bytes: a Secret cannot have so many", MaxFile)
	}
	text = bytes.TrimSpace(text)
	if len(text) > 0 && text[0] == '{' {
		text = slices.Concat([]byte{'['}, text, []byte{']'})
	}
	var list []json.RawMessage
	if err := json.Unmarshal(text, &list); err != nil {
		// The decoder's own words may quote the text.
		var s *json.SyntaxError
		if errors.As(err, &s) {
			return nil, fmt.Errorf("the file of pull secrets is no JSON (byte %d): write a list of objects", s.Offset)
		}
		return nil, errors.New("the file of pull secrets is no list of objects: write [] for none")
	}
	c := &Config{}
	for i, raw := range list {
		e, err := parseEntry(raw)
		if err == nil {
			err = c.clash(e)
		}
		if err == nil {
			c.Entries = append(c.Entries, e)
			continue
		}
		c.Mistakes = append(c.Mistakes, fmt.Errorf("pull secret %d%s: %w", i+1, called(e.Name), err))
		if e.Name == "" {
			c.keepAll = true
		}
		c.kept = append(c.kept, e.Name)
	}
	return c, nil
}

func called(name string) string {
	if name == "" {
		return ""
	}
	return " (" + name + ")"
}

// fields of an entry, as they are in the file.
var fields = []string{"name", "namespaces", "serviceAccounts", "type", "dockerUsername", "dockerPassword", "dockerServer"}

// parseEntry reads one object. With an error, the entry has its name if that can
// be told.
func parseEntry(raw json.RawMessage) (e Entry, err error) {
	var object map[string]json.RawMessage
	if json.Unmarshal(raw, &object) != nil || object == nil {
		return e, errors.New("it is no object: write {\"dockerUsername\": …, \"dockerPassword\": …, \"dockerServer\": …}")
	}
	values := map[string]string{}
	var mistakes []error
	for _, f := range fields {
		v, there := object[f]
		delete(object, f)
		var s *string // null is as good as nothing
		if there && json.Unmarshal(v, &s) != nil {
			mistakes = append(mistakes, fmt.Errorf("%s is no string: put it in quotes", f))
		} else if s != nil {
			values[f] = *s
		}
	}
	if len(object) > 0 {
		mistakes = append(mistakes, fmt.Errorf("it has %d unknown fields: use %s", len(object), strings.Join(fields, ", ")))
	}
	for _, f := range fields[:4] {
		values[f] = strings.TrimSpace(values[f])
	}
	e.username, e.password, e.server = values["dockerUsername"], values["dockerPassword"], strings.TrimSpace(values["dockerServer"])
	serverErr := checkServer(e.server)
	name := values["name"]
	if name == "" && serverErr == nil {
		name = derived(e.server)
	}
	if name != "" {
		if len(validation.IsDNS1123Subdomain(name)) > 0 {
			mistakes = append(mistakes, errors.New("name is no name of a Secret: use lower-case letters, digits, '-' and '.'"))
		} else {
			e.Name = name
		}
	}
	if t := values["type"]; t != "" && t != "docker" {
		mistakes = append(mistakes, errors.New("type is not docker, the only one there is"))
	}
	mistakes = append(mistakes, checkLogin(e.username, e.password), serverErr)
	if e.Namespaces, err = names(values["namespaces"]); err != nil {
		mistakes = append(mistakes, fmt.Errorf("namespaces %w", err))
	}
	if e.ServiceAccounts, err = names(values["serviceAccounts"]); err != nil {
		mistakes = append(mistakes, fmt.Errorf("serviceAccounts %w", err))
	}
	return e, oneLine(mistakes)
}

func oneLine(mistakes []error) error {
	var text []string
	for _, m := range mistakes {
		if m != nil {
			text = append(text, m.Error())
		}
	}
	if text == nil {
		return nil
	}
	return errors.New(strings.Join(text, "; "))
}

func checkLogin(username, password string) error {
	switch {
	case username == "":
		return errors.New("dockerUsername is missing: give the registry's user name")
	case strings.ContainsAny(username, ":\r\n"):
		return errors.New("dockerUsername has a colon or a line break in it, which no registry can be told")
	case password == "":
		return errors.New("dockerPassword is missing: give the registry's password or token")
	case strings.ContainsAny(password, "\r\n"):
		return errors.New("dockerPassword has a line break in it: take it out")
	}
	return nil
}

// checkServer checks the key of a docker configuration: host[:port][/path], also
// as a URL.
func checkServer(s string) error {
	if s == "" {
		return errors.New("dockerServer is missing: give the registry's host, as images are named with")
	}
	bad := errors.New("dockerServer is no host: write it as images are named with, registry.example.com or registry.example.com:5000")
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || (u.Scheme != "https" && u.Scheme != "http") {
		return bad
	}
	if strings.ContainsFunc(u.Host, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`,"'\`, r) }) {
		return bad
	}
	return nil
}

// derived is the name of an entry without one.
func derived(server string) string {
	_, host, found := strings.Cut(server, "://")
	if !found {
		host = server
	}
	host, _, _ = strings.Cut(host, "/")
	clean := strings.Map(func(r rune) rune {
		if (r >= 'a' && r <= 'z') || (r >= '0' && r <= '9') {
			return r
		}
		return '-'
	}, strings.ToLower(host))
	name := "apparate-" + strings.Trim(clean, "-")
	return strings.TrimRight(name[:min(len(name), validation.DNS1123LabelMaxLength)], "-")
}

// names reads '*' or a list with commas.
func names(s string) ([]string, error) {
	if s == "" {
		return []string{All}, nil
	}
	var list []string
	for n := range strings.SplitSeq(s, ",") {
		switch n = strings.TrimSpace(n); {
		case n == "": // a comma too many
		case n != All && len(validation.IsDNS1123Subdomain(n)) > 0:
			return nil, fmt.Errorf("has the name %.80q in it, which is none: write '*', or names with commas between them", n)
		default:
			list = append(list, n)
		}
	}
	if list == nil {
		return nil, errors.New("has no name in it: write '*', or names with commas between them")
	}
	if slices.Contains(list, All) {
		return []string{All}, nil
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}

func named(list []string, name string) bool { return list[0] == All || slices.Contains(list, name) }

// clash returns an error where a namespace would get two Secrets of one name.
func (c *Config) clash(e Entry) error {
	for _, o := range c.Entries {
		if o.Name == e.Name && (e.Namespaces[0] == All || slices.ContainsFunc(e.Namespaces, func(n string) bool { return named(o.Namespaces, n) }) || o.Namespaces[0] == All) {
			return errors.New("name is that of an earlier one for the same namespace: give each its own name")
		}
	}
	return nil
}

// In returns the entries of a namespace by their names.
func (c *Config) In(namespace string) map[string]*Entry {
	found := map[string]*Entry{}
	for i := range c.Entries {
		if e := &c.Entries[i]; named(e.Namespaces, namespace) {
			found[e.Name] = e
		}
	}
	return found
}

// Keeps says whether what is there under a name has to stay because an entry is
// bad, which may be about it.
func (c *Config) Keeps(name string) bool { return c.keepAll || slices.Contains(c.kept, name) }

// For says whether a service account gets the secret.
func (e *Entry) For(serviceAccount string) bool { return named(e.ServiceAccounts, serviceAccount) }

// DockerConfig is the content of the Secret, as `kubectl create secret
// docker-registry` makes it.
func (e *Entry) DockerConfig() []byte {
	type login struct {
		Username string `json:"username"`
		Password string `json:"password"`
		Auth     []byte `json:"auth"`
	}
	text, err := json.Marshal(map[string]map[string]login{"auths": {
		e.server: {e.username, e.password, []byte(e.username + ":" + e.password)},
	}})
	if err != nil {
		panic(err) // strings only
	}
	return text
}

// String names the entry and nothing secret, also where it is printed whole.
func (e Entry) String() string { return e.Name }

// GoString is String.
func (e Entry) GoString() string { return e.Name }
