package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/match"
	"github.com/apparate/apparate/converter"
	"github.com/apparate/apparate/converter/fault"
	"github.com/apparate/apparate/converter/registry"
)

// verifyFlags are the flags of "apparate verify".
type verifyFlags struct {
	files      []string
	namespace  string
	all        bool
	kubeconfig string
	inspect    bool
	plainHTTP  bool
	output     string
}

func newVerifyCommand() *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify IMAGE",
		Short: "Say whether a pushed image would be accelerated, and why not",
		Long: `Holds the address of an image against acceleration rules: those of a cluster, or
those of files, for which neither a cluster nor a registry is needed.

Of a cluster it also says what became of the image, where it was converted or
should have been. With --inspect the registry is asked what the image is, with
the credentials of docker's config file.

The exit code is 0 when the image would be converted and 1 when it would not.`,
		Example: `  apparate verify registry.example.com/library/nginx:latest -n web
  apparate verify registry.example.com/library/nginx:latest -f rule.yaml
  kubectl get accelrule -o yaml | apparate verify registry.example.com/team/app:v1 -f -`,
		Args: exactArgs(1, "one image"),
		RunE: func(cmd *cobra.Command, args []string) error { return runVerify(cmd, f, args[0]) },
	}
	fl := cmd.Flags()
	fl.StringSliceVarP(&f.files, "filename", "f", nil, "files with AccelerationRules, and Registries if there are any; - for standard input")
	fl.StringVarP(&f.namespace, "namespace", "n", "", "namespace of the cluster (default: the one of the kubeconfig)")
	fl.BoolVarP(&f.all, "all-namespaces", "A", false, "rules of all namespaces of the cluster")
	fl.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig file (default: $KUBECONFIG or ~/.kube/config)")
	fl.BoolVar(&f.inspect, "inspect", false, "ask the registry what the image is")
	fl.BoolVar(&f.plainHTTP, "plain-http", false, "with --inspect: allow a registry without TLS")
	fl.StringVar(&f.output, "output", "text", "text or json")
	return cmd
}

// rulebook is what an address is held against.
type rulebook struct {
	registries  []v1alpha1.Registry
	rules       []v1alpha1.AccelerationRule
	conversions []v1alpha1.ImageConversion
	// offline says that Registries may be missing: then a rule's registry is taken
	// to be the one of the address, switched on.
	offline bool
}

// verdict is the answer for one registry instance.
type verdict struct {
	Image    string `json:"image"`
	Registry string `json:"registry,omitempty"`
	Matches  bool   `json:"matches"`
	Reason   string `json:"reason"`
	Message  string `json:"message"`
	Rule     string `json:"rule,omitempty"`
	Target   string `json:"target,omitempty"`
	// Conversion says what became of it, where there is one.
	Conversion string `json:"conversion,omitempty"`
}

func runVerify(cmd *cobra.Command, f verifyFlags, address string) error {
	switch {
	case f.output != "text" && f.output != "json":
		return usageError{fmt.Errorf("--output %q: use text or json", f.output)}
	case len(f.files) > 0 && (f.namespace != "" || f.all || f.kubeconfig != ""):
		return usageError{errors.New("-f answers from files alone: leave out -n, -A and --kubeconfig")}
	}
	a, err := match.ParseAddress(address)
	if err != nil {
		return err
	}
	var book *rulebook
	if len(f.files) > 0 {
		book, err = readRules(f.files, cmd.InOrStdin())
	} else {
		book, err = fetchRules(cmd.Context(), f, a)
	}
	if err != nil {
		return err
	}
	var facts *match.Facts
	if f.inspect {
		if facts, err = inspect(cmd, f, a); err != nil {
			return err
		}
	}
	all, err := book.verify(address, a, facts)
	if err != nil {
		return err
	}
	matched := false
	for _, v := range all {
		matched = matched || v.Matches
		if err := v.print(cmd.OutOrStdout(), f.output); err != nil {
			return err
		}
	}
	if !matched {
		return reported{errors.New("it would not be converted")}
	}
	return nil
}

// print writes a verdict.
func (v *verdict) print(w io.Writer, output string) error {
	if output == "json" {
		return json.NewEncoder(w).Encode(v)
	}
	text := "no  " + v.Reason + ": " + v.Message
	if v.Matches {
		text = "yes " + v.Message + "\n    it becomes " + v.Target
	}
	if v.Conversion != "" {
		text += "\n    " + v.Conversion
	}
	_, err := fmt.Fprintln(w, text)
	return err
}

// verify answers for every instance that the address is of.
func (b *rulebook) verify(address string, a match.Address, facts *match.Facts) ([]verdict, error) {
	set, err := b.compile(a)
	if err != nil {
		return nil, err
	}
	var all []verdict
	var hosts []string
	for _, in := range b.instances(a) {
		if !match.SameHost(in.Host, a.Host) {
			hosts = append(hosts, in.Host)
			continue
		}
		img := match.Image{Registry: in.Key, Repository: a.Repository, Tag: a.Tag, Facts: facts}
		d := set.Decide(img)
		v := verdict{Image: address, Registry: in.Key.Name, Matches: d.Convert, Reason: d.Reason, Message: set.Explain(img, d)}
		if d.Rule != nil {
			v.Rule = d.Rule.Key.Name
		}
		if d.Convert {
			v.Target = a.Host + "/" + a.Repository + ":" + a.Tag + image.Suffix
		}
		v.Conversion = b.conversion(in.Key, a)
		all = append(all, v)
	}
	if len(all) == 0 {
		v := verdict{Image: address, Reason: v1alpha1.ReasonNoRuleMatches, Message: "there is no Registry"}
		if len(hosts) > 0 {
			v.Message = fmt.Sprintf("no Registry is for %s: there are Registries for %s", a.Host, strings.Join(hosts, ", "))
		}
		all = append(all, v)
	}
	return all, nil
}

// instances are the registry instances of the book. Offline, those that rules
// only name are taken to be the address's.
func (b *rulebook) instances(a match.Address) []match.Instance {
	var all []match.Instance
	known := map[match.Key]bool{}
	add := func(in match.Instance) {
		if !known[in.Key] {
			known[in.Key] = true
			all = append(all, in)
		}
	}
	for i := range b.registries {
		r := &b.registries[i]
		add(match.InstanceOf(r))
	}
	for i := range b.rules {
		if b.offline {
			add(match.Instance{Key: match.RuleOf(&b.rules[i]).Registry, Host: a.Host, Enabled: true})
		}
	}
	return all
}

// compile prepares the rules; a mistake in one is the answer for all.
func (b *rulebook) compile(a match.Address) (*match.Set, error) {
	var rules []match.Rule
	var mistakes []error
	for i := range b.rules {
		r := &b.rules[i]
		for _, m := range r.Validate() {
			mistakes = append(mistakes, mistake(v1alpha1.KindAccelerationRule, r.Name, m))
		}
		rules = append(rules, match.RuleOf(r))
	}
	for i := range b.registries {
		r := &b.registries[i]
		for _, m := range r.Validate() {
			mistakes = append(mistakes, mistake(v1alpha1.KindRegistry, r.Name, m))
		}
	}
	set, bad := match.Compile(b.instances(a), rules)
	if len(mistakes) == 0 {
		for key, err := range bad {
			mistakes = append(mistakes, mistake(v1alpha1.KindAccelerationRule, key.Name, err))
		}
	}
	return set, errors.Join(mistakes...)
}

func mistake(kind, name string, err error) error { return fmt.Errorf("%s %q: %w", kind, name, err) }

// conversion says what became of an image.
func (b *rulebook) conversion(registry match.Key, a match.Address) string {
	var last *v1alpha1.ImageConversion
	for i := range b.conversions {
		c := &b.conversions[i]
		if c.Namespace == registry.Namespace && c.Spec.RegistryRef.Name == registry.Name && c.Spec.Repository == a.Repository && c.Spec.Tag == a.Tag &&
			(last == nil || last.CreationTimestamp.Before(&c.CreationTimestamp)) {
			last = c
		}
	}
	if last == nil {
		return ""
	}
	for _, c := range last.Status.Conditions {
		if c.Type == v1alpha1.ConditionSucceeded {
			return fmt.Sprintf("ImageConversion %s: %s: %s", last.Name, c.Reason, c.Message)
		}
	}
	return fmt.Sprintf("ImageConversion %s was not looked at yet: is the operator running?", last.Name)
}

// inspect asks the registry what the image is.
func inspect(cmd *cobra.Command, f verifyFlags, a match.Address) (*match.Facts, error) {
	s, err := registry.NewSession(registry.Options{PlainHTTP: f.plainHTTP}, a.Host, registry.SessionLimit{})
	if err != nil {
		return nil, err
	}
	look := func(tag string) (converter.Inspection, string, error) {
		m, _, err := s.Look(cmd.Context(), a.Repository, tag, "")
		if err != nil {
			return converter.Inspection{}, "", err
		}
		in, err := converter.Inspect(m)
		return in, m.Digest, err
	}
	in, digest, err := look(a.Tag)
	if err != nil {
		return nil, err
	}
	facts := &match.Facts{Digest: digest, Accelerated: in.Accelerated, NotImage: in.NotImage, Platforms: in.Platforms}
	if in.ConfigDigest != "" {
		raw, err := s.ReadBlob(cmd.Context(), a.Repository, in.ConfigDigest, in.ConfigSize)
		if err != nil {
			return nil, err
		}
		if p, err := converter.ConfigPlatform(raw); err == nil && p != "" {
			facts.Platforms = []string{p}
		}
	}
	beside, _, err := look(a.Tag + image.Suffix)
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return nil, err
	}
	facts.AcceleratedFrom = beside.SourceDigest
	return facts, nil
}
