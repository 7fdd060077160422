package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/match"
)

// maxRules bounds a file of rules, in bytes.
const maxRules = 16 << 20

// readRules reads manifests of files.
func readRules(files []string, stdin io.Reader) (*rulebook, error) {
	b := &rulebook{offline: true}
	for _, f := range files {
		in := stdin
		if f != "-" {
			file, err := os.Open(f)
			if err != nil {
				return nil, fmt.Errorf("-f: %w", err)
			}
			defer func() { _ = file.Close() }() // nothing was written
			in = file
		}
		text, err := io.ReadAll(io.LimitReader(in, maxRules))
		if err != nil {
			return nil, fmt.Errorf("-f %s: %w", f, err)
		}
		docs := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
		for n := 1; ; n++ {
			doc, err := docs.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err == nil {
				err = b.add(doc)
			}
			if err != nil {
				return nil, fmt.Errorf("-f %s, document %d: %w", f, n, err)
			}
		}
	}
	if len(b.rules) == 0 {
		return nil, fmt.Errorf("%v: there is no AccelerationRule in it", files)
	}
	return b, nil
}

// add reads one document: a kind of ours, or a list of such; others are left out.
func (b *rulebook) add(doc []byte) error {
	raw, err := sigsyaml.YAMLToJSON(doc)
	if err != nil {
		return err
	}
	var head struct {
		metav1.TypeMeta
		Items []json.RawMessage `json:"items"`
	}
	if bytes.Equal(raw, []byte("null")) {
		return nil
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return fmt.Errorf("it is no Kubernetes object: %w", err)
	}
	for i, item := range head.Items {
		if err := b.add(item); err != nil {
			return fmt.Errorf("items[%d]: %w", i, err)
		}
	}
	if head.APIVersion != v1alpha1.GroupVersion.String() {
		return nil
	}
	// Strictly, as the server does: a field that is misspelt must not count as
	// left out.
	switch head.Kind {
	case v1alpha1.KindAccelerationRule:
		var r v1alpha1.AccelerationRule
		if err := sigsyaml.UnmarshalStrict(raw, &r); err != nil {
			return fmt.Errorf("%s: %w", head.Kind, err)
		}
		b.rules = append(b.rules, r)
	case v1alpha1.KindRegistry:
		var r v1alpha1.Registry
		if err := sigsyaml.UnmarshalStrict(raw, &r); err != nil {
			return fmt.Errorf("%s: %w", head.Kind, err)
		}
		b.registries = append(b.registries, r)
	}
	return nil
}

// fetchRules reads the rules of a cluster.
func fetchRules(ctx context.Context, f verifyFlags, a match.Address) (*rulebook, error) {
	loading := clientcmd.NewDefaultClientConfigLoadingRules()
	loading.ExplicitPath = f.kubeconfig
	config := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(loading, nil)
	namespace := f.namespace
	if namespace == "" && !f.all {
		var err error
		if namespace, _, err = config.Namespace(); err != nil {
			return nil, fmt.Errorf("finding the cluster (or give files with -f): %w", err)
		}
	}
	kube, err := config.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("finding the cluster (or give files with -f): %w", err)
	}
	c, err := newLister(kube, namespace)
	if err != nil {
		return nil, err
	}
	var registries v1alpha1.RegistryList
	var rules v1alpha1.AccelerationRuleList
	if err := errors.Join(c.list(ctx, "registries", "", &registries), c.list(ctx, "accelerationrules", "", &rules)); err != nil {
		return nil, err
	}
	b := &rulebook{registries: registries.Items, rules: rules.Items}
	for next := ""; ; {
		var page v1alpha1.ImageConversionList
		if err := c.list(ctx, "imageconversions", next, &page); err != nil {
			return nil, err
		}
		for _, i := range page.Items {
			if i.Spec.Repository == a.Repository && i.Spec.Tag == a.Tag {
				b.conversions = append(b.conversions, i)
			}
		}
		if next = page.Continue; next == "" {
			return b, nil
		}
	}
}

// lister lists our kinds over plain HTTP: the generic clients would make this
// program, which is also the node's daemon, twice as large.
type lister struct {
	client    *http.Client
	base      url.URL
	namespace string
}

func newLister(kube *rest.Config, namespace string) (*lister, error) {
	kube.Timeout = time.Minute
	client, err := rest.HTTPClientFor(kube)
	if err != nil {
		return nil, fmt.Errorf("speaking to the cluster: %w", err)
	}
	base, _, err := rest.DefaultServerUrlFor(kube)
	if err != nil {
		return nil, fmt.Errorf("the server of the kubeconfig: %w", err)
	}
	return &lister{client, *base, namespace}, nil
}

// list reads one page of up to 500.
func (l *lister) list(ctx context.Context, resource, next string, into any) error {
	u := l.base
	u.Path = path.Join(u.Path, "apis", v1alpha1.Group, v1alpha1.GroupVersion.Version)
	if l.namespace != "" {
		u.Path = path.Join(u.Path, "namespaces", l.namespace)
	}
	u.Path = path.Join(u.Path, resource)
	u.RawQuery = url.Values{"limit": {"500"}, "continue": {next}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := l.client.Do(req)
	if err != nil {
		return fmt.Errorf("reading %s: %w", resource, err)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return fmt.Errorf("reading %s: %w", resource, err)
	}
	if resp.StatusCode == http.StatusOK {
		return json.Unmarshal(body, into)
	}
	var status metav1.Status
	if json.Unmarshal(body, &status) != nil || status.Message == "" {
		status.Message = resp.Status
	}
	if resp.StatusCode == http.StatusNotFound {
		status.Message += ": are the CRDs of Apparate installed?"
	}
	return fmt.Errorf("reading %s: %s", resource, status.Message)
}
