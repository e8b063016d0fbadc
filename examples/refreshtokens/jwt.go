package main

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Access tokens are signed JWTs (RFC 7519) of one shape: Ed25519 (RFC 8037), the
// type of RFC 9068, these claims and no others.
const (
	issuer     = "https://auth.example.com"
	audience   = "https://api.example.com"
	accessLife = 5 * time.Minute

	maxAccessToken  = 1024
	signatureLength = 86               // of 64 bytes in base64
	clockSkew       = 30 * time.Second // between the nodes
)

// claims are what an access token says. It is signed, not encrypted: nothing in
// it is a secret.
type claims struct {
	Issuer    string    `json:"iss"`
	Audience  string    `json:"aud"`
	Subject   string    `json:"sub"` // the user's key
	Session   uuid.UUID `json:"sid"` // the session's ID, which is no secret
	ID        uuid.UUID `json:"jti"`
	IssuedAt  int64     `json:"iat"`
	ExpiresAt int64     `json:"exp"`
}

var errAccessToken = errors.New("not a valid access token")

// keys signs with one key and accepts those of several, found by the key's ID in
// the header. To change the key without refusing a token that is out: deploy the
// new one as a former key everywhere; then make it the signing key, and the old
// one a former; drop that when its last token has expired, after accessLife.
type keys struct {
	signing ed25519.PrivateKey
	header  string // of the tokens that signing makes
	public  map[string]ed25519.PublicKey
}

// newKeys takes the key to sign with, and the public ones that are also accepted.
func newKeys(signing ed25519.PrivateKey, former ...ed25519.PublicKey) *keys {
	own := signing.Public().(ed25519.PublicKey)
	k := &keys{signing: signing, header: headerFor(own), public: map[string]ed25519.PublicKey{headerFor(own): own}}
	for _, key := range former {
		k.public[headerFor(key)] = key
	}
	return k
}

// headerFor is the one header that tokens of a key have, encoded.
func headerFor(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	kid := base64.RawURLEncoding.EncodeToString(sum[:9])
	return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"EdDSA","kid":"` + kid + `","typ":"at+jwt"}`))
}

// sign makes an access token for a user's session.
func (k *keys) sign(subject string, session uuid.UUID, now time.Time) (string, error) {
	payload, err := json.Marshal(claims{Issuer: issuer, Audience: audience, Subject: subject, Session: session,
		ID: uuid.New(), IssuedAt: now.Unix(), ExpiresAt: now.Add(accessLife).Unix()})
	if err != nil {
		return "", err
	}
	signed := k.header + "." + base64.RawURLEncoding.EncodeToString(payload)
	return signed + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(k.signing, []byte(signed))), nil
}

// verify returns what a valid access token says. A token does not choose how it is
// verified: its header is not parsed, but is, byte for byte, that of one of the
// keys. So there is no "alg" to confuse, and no "jwk", "jku" or "crit" to follow.
// The payload is looked at only when its signature is right.
func (k *keys) verify(token string, now time.Time) (*claims, error) {
	if len(token) > maxAccessToken {
		return nil, errAccessToken
	}
	header, rest, _ := strings.Cut(token, ".")
	payload, signature, _ := strings.Cut(rest, ".")
	key, known := k.public[header]
	// Of the exact length and Strict: each signature has one spelling.
	sig, err := base64.RawURLEncoding.Strict().DecodeString(signature)
	if !known || err != nil || len(signature) != signatureLength || len(sig) != ed25519.SignatureSize ||
		!ed25519.Verify(key, []byte(header+"."+payload), sig) {
		return nil, errAccessToken
	}
	text, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return nil, errAccessToken
	}
	var c claims
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, errAccessToken
	}
	issued, expires := time.Unix(c.IssuedAt, 0), time.Unix(c.ExpiresAt, 0)
	switch {
	case c.Issuer != issuer, c.Audience != audience,
		c.Subject == "", c.Session == uuid.Nil, c.ID == uuid.Nil,
		issued.After(now.Add(clockSkew)), !now.Before(expires), expires.Sub(issued) > accessLife:
		return nil, errAccessToken
	}
	return &c, nil
}
