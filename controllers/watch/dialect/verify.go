package dialect

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"strings"
)

// Errors of Verify. None tells what was sent.
var (
	ErrNoCredentials  = errors.New("the notification has no token and no signature")
	ErrWrongToken     = errors.New("the token is wrong")
	ErrWrongSignature = errors.New("the signature is wrong")
)

// TokenHeader is a header for the token, for senders whose Authorization is taken.
const TokenHeader = "X-Apparate-Token" //nolint:gosec // a name, no credential

// Verify makes sure that a notification was sent by somebody who knows one of the
// secrets, and returns how that was proved:
//
//	signature  X-Hub-Signature-256 over the body (GitHub's "Validating webhook deliveries")
//	bearer     Authorization: Bearer <secret> (RFC 6750)
//	basic      Authorization: Basic, the secret as the password of any user (RFC 7617)
//	header     Authorization: <secret>, as Harbor, TCR and ACR send what was configured;
//	           or X-Apparate-Token
//	query      ?token=<secret>, for senders that cannot set a header (Quay, Docker Hub)
//
// A signature that is there has to be right, whatever else is there.
func Verify(h http.Header, query url.Values, body []byte, secrets [][]byte) (method string, err error) {
	if sent := h.Get("X-Hub-Signature-256"); sent != "" {
		if signed(sent, body, secrets) {
			return "signature", nil
		}
		return "", ErrWrongSignature
	}
	method, token := proof(h, query)
	switch {
	case method == "":
		return "", ErrNoCredentials
	case !known(token, secrets):
		return "", ErrWrongToken
	}
	return method, nil
}

// proof finds the token.
func proof(h http.Header, query url.Values) (method, token string) {
	if a := h.Get("Authorization"); a != "" {
		scheme, rest, _ := strings.Cut(a, " ")
		switch strings.ToLower(scheme) {
		case "bearer":
			return "bearer", strings.TrimSpace(rest)
		case "basic":
			r := http.Request{Header: h}
			_, password, _ := r.BasicAuth()
			return "basic", password
		}
		return "header", a
	}
	if t := h.Get(TokenHeader); t != "" {
		return "header", t
	}
	if t := query.Get("token"); t != "" {
		return "query", t
	}
	return "", ""
}

// known compares in a time that depends neither on what was sent nor on which
// secret it is.
func known(token string, secrets [][]byte) bool {
	sent := sha256.Sum256([]byte(token))
	found := 0
	for _, s := range secrets {
		want := sha256.Sum256(s)
		same := subtle.ConstantTimeCompare(sent[:], want[:])
		if len(s) == 0 {
			same = 0
		}
		found |= same
	}
	return found == 1
}

func signed(sent string, body []byte, secrets [][]byte) bool {
	digits, ok := strings.CutPrefix(sent, "sha256=")
	mac, err := hex.DecodeString(digits)
	if !ok || err != nil {
		return false
	}
	found := false
	for _, s := range secrets {
		if len(s) == 0 {
			continue
		}
		m := hmac.New(sha256.New, s)
		m.Write(body)
		found = hmac.Equal(m.Sum(nil), mac) || found
	}
	return found
}
