package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

// claims are what a JWT says in place of a row.
type claims struct {
	jwt.RegisteredClaims
	Owner  uint   `json:"owner"`
	Device string `json:"device"`
}

// verify checks a JWT for each of the first rows, signed before.
func verify(name string, method jwt.SigningMethod, sign, public any, rows population, n int) (contestant, error) {
	tokens := make([]string, n)
	for i := range tokens {
		s := rows.session(i)
		var err error
		tokens[i], err = jwt.NewWithClaims(method, claims{jwt.RegisteredClaims{
			ID:        s.ID.String(),
			ExpiresAt: jwt.NewNumericDate(*s.ExpiresAt),
			IssuedAt:  jwt.NewNumericDate(s.CreatedAt),
		}, s.OwnerID, s.Device}).SignedString(sign)
		if err != nil {
			return contestant{}, err
		}
	}
	parser := jwt.NewParser(jwt.WithValidMethods([]string{method.Alg()}))
	key := func(*jwt.Token) (any, error) { return public, nil }
	return contestant{
		name: name,
		run: func(_ context.Context, in input) (any, error) {
			c := new(claims)
			_, err := parser.ParseWithClaims(tokens[in.i], c, key)
			return c, err
		},
		check: func(answer any, in input) error {
			got, want := answer.(*claims), in.rows.session(in.i)
			id, err := uuid.Parse(got.ID)
			if err != nil {
				return err
			}
			if id != want.ID || got.Owner != want.OwnerID || got.Device != want.Device || !got.ExpiresAt.Equal(want.ExpiresAt.Truncate(time.Second)) {
				return fmt.Errorf("got %+v, want the claims of %+v", got, want)
			}
			return nil
		},
	}, nil
}

// jwts are the usual ways to sign.
func jwts(rows population, n int) ([]contestant, error) {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	public, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	var all []contestant
	for _, kind := range []struct {
		name         string
		method       jwt.SigningMethod
		sign, public any
	}{
		{"JWT, HS256", jwt.SigningMethodHS256, secret, secret},
		{"JWT, ES256", jwt.SigningMethodES256, curve, &curve.PublicKey},
		{"JWT, EdDSA", jwt.SigningMethodEdDSA, edwards, public},
	} {
		c, err := verify(kind.name, kind.method, kind.sign, kind.public, rows, n)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}
