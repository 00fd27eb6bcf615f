def render_audit(a,b,c): return ""
