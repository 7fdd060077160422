package dialect

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func TestVerify(t *testing.T) {
	const secret, before = "correct horse battery staple", "the token of last year"
	secrets := [][]byte{[]byte(secret), []byte(before), nil}
	body := []byte(`{"zen":"x"}`)
	sign := func(key string, body []byte) string {
		m := hmac.New(sha256.New, []byte(key))
		m.Write(body)
		return "sha256=" + hex.EncodeToString(m.Sum(nil))
	}
	basic := func(user, password string) string {
		r := http.Request{Header: http.Header{}}
		r.SetBasicAuth(user, password)
		return r.Header.Get("Authorization")
	}
	for _, c := range []struct {
		name   string
		header http.Header
		query  string
		method string
		err    error
	}{
		{"bearer", headers("Authorization", "Bearer "+secret), "", "bearer", nil},
		{"bearer in lower case", headers("Authorization", "bearer "+secret), "", "bearer", nil},
		{"the one before", headers("Authorization", "Bearer "+before), "", "bearer", nil},
		{"basic", headers("Authorization", basic("anybody", secret)), "", "basic", nil},
		{"raw", headers("Authorization", strings.ReplaceAll(secret, " ", "-")), "", "", ErrWrongToken},
		{"header", headers(TokenHeader, secret), "", "header", nil},
		{"query", headers(), "token=" + url.QueryEscape(secret), "query", nil},
		{"signature", headers("X-Hub-Signature-256", sign(secret, body)), "", "signature", nil},
		{"signature with the one before", headers("X-Hub-Signature-256", sign(before, body)), "", "signature", nil},
		{"nothing", headers(), "", "", ErrNoCredentials},
		{"empty", headers("Authorization", ""), "token=", "", ErrNoCredentials},
		{"wrong bearer", headers("Authorization", "Bearer "+secret+"x"), "", "", ErrWrongToken},
		{"empty bearer", headers("Authorization", "Bearer "), "", "", ErrWrongToken},
		{"wrong basic", headers("Authorization", basic(secret, "x")), "", "", ErrWrongToken},
		{"broken basic", headers("Authorization", "Basic !!!"), "", "", ErrWrongToken},
		{"wrong query", headers(), "token=x", "", ErrWrongToken},
		{"a header counts before the query", headers("Authorization", "Bearer x"), "token=" + url.QueryEscape(secret), "", ErrWrongToken},
		{"signature of another body", headers("X-Hub-Signature-256", sign(secret, []byte("y"))), "", "", ErrWrongSignature},
		{"signature of nothing", headers("X-Hub-Signature-256", sign("", body)), "", "", ErrWrongSignature},
		{"broken signature", headers("X-Hub-Signature-256", "sha256=zz"), "", "", ErrWrongSignature},
		{"sha1", headers("X-Hub-Signature-256", "sha1=aa"), "", "", ErrWrongSignature},
		{"a wrong signature beside a right token", headers("Authorization", "Bearer "+secret, "X-Hub-Signature-256", "sha256=00"), "", "", ErrWrongSignature},
	} {
		q, err := url.ParseQuery(c.query)
		if err != nil {
			t.Fatal(err)
		}
		method, err := Verify(c.header, q, body, secrets)
		if method != c.method || !errors.Is(err, c.err) {
			t.Errorf("%s: %q, %v; want %q, %v", c.name, method, err, c.method, c.err)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error has the secret", c.name)
		}
	}
	// What Harbor, TCR and ACR send: the header as it was configured.
	raw := []byte("no-spaces-in-this-one")
	if m, err := Verify(headers("Authorization", string(raw)), nil, nil, [][]byte{raw}); m != "header" || err != nil {
		t.Errorf("raw header: %q, %v", m, err)
	}
	if _, err := Verify(headers("Authorization", "Bearer x"), nil, nil, nil); !errors.Is(err, ErrWrongToken) {
		t.Errorf("without secrets: %v", err)
	}
}
