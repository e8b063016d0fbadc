package gormsessions

// NewToken and ValidToken are the token format, for tests that need millions.
func NewToken(prefix string, randomBytes int) Token {
	return newTokenFormat(prefix, randomBytes).newToken()
}

func ValidToken(prefix string, randomBytes int, token string) bool {
	return newTokenFormat(prefix, randomBytes).matches(token)
}

// These are what MySQL's servers and zones are judged by.
var (
	HasUUID       = hasUUID
	HasSkipLocked = hasSkipLocked
	ClocksChange  = clocksChange
)
