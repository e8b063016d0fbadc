package main

import (
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"hash"
	"runtime"
	"strconv"
	"strings"
)

const (
	// owaspIterations is what OWASP's Password Storage Cheat Sheet asks of
	// PBKDF2-HMAC-SHA256.
	owaspIterations = 600_000

	shortestPassword = 8
	longestPassword  = 128 // bytes

	scheme = "pbkdf2-sha256"
)

// passwords hashes them, slowly by design, and so no more at a time than there are
// processors.
type passwords struct {
	iterations int
	slots      chan struct{}
	key        func(h func() hash.Hash, password string, salt []byte, iterations, size int) ([]byte, error)
}

func newPasswords(iterations int) passwords {
	return passwords{iterations, make(chan struct{}, runtime.GOMAXPROCS(0)), pbkdf2.Key[hash.Hash]}
}

// hash makes what is stored: scheme$iterations$salt$key.
func (p passwords) hash(ctx context.Context, password string) (string, error) {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // it cannot fail: it would end the program
	key, err := p.derive(ctx, password, salt, p.iterations, sha256.Size)
	if err != nil {
		return "", err
	}
	b64 := base64.RawStdEncoding.EncodeToString
	return strings.Join([]string{scheme, strconv.Itoa(p.iterations), b64(salt), b64(key)}, "$"), nil
}

// verify reports whether the password is the stored one. Nothing stored takes as
// long as a wrong password, so that nobody learns by the time who has an account.
func (p passwords) verify(ctx context.Context, stored, password string) (bool, error) {
	if stored == "" {
		_, err := p.hash(ctx, password)
		return false, err
	}
	parts := strings.Split(stored, "$")
	if len(parts) != 4 || parts[0] != scheme {
		return false, fmt.Errorf("a stored password is not of the scheme %s", scheme)
	}
	iterations, err := strconv.Atoi(parts[1])
	if err != nil {
		return false, fmt.Errorf("a stored password's iterations: %w", err)
	}
	salt, err := base64.RawStdEncoding.DecodeString(parts[2])
	if err != nil {
		return false, fmt.Errorf("a stored password's salt: %w", err)
	}
	want, err := base64.RawStdEncoding.DecodeString(parts[3])
	if err != nil {
		return false, fmt.Errorf("a stored password's key: %w", err)
	}
	key, err := p.derive(ctx, password, salt, iterations, len(want))
	return err == nil && subtle.ConstantTimeCompare(key, want) == 1, err
}

func (p passwords) derive(ctx context.Context, password string, salt []byte, iterations, size int) ([]byte, error) {
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
		return p.key(sha256.New, password, salt, iterations, size)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
